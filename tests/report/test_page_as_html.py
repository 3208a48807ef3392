"""The HTML of a report: it loads and runs nothing, whatever its names are, and it is small."""

import csv
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from pages import Page

from autotl.data import stored
from autotl.report.page import facts, write
from autotl.report.page.model import Judged, pictures
from autotl.testing.lab import write_stripes
from autotl.tracking import predictions
from autotl.tracking.folder import StudyFolder
from autotl.tracking.result import OfClass

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}</title><svg/onload=alert(1)>")
MOST = 5_000_000
"""Bytes."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, search_stripes):
    """The page of a study whose class names and file names are code."""
    place = tmp_path_factory.mktemp("hostile")
    images = write_stripes(place / "stripes")
    with open(place / "manifest.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for number, kind in enumerate(sorted(images.iterdir())):
            for image in sorted(kind.iterdir()):
                named = image.rename(image.with_name(f"<b onclick=alert(2)>{image.name}"))
                rows.writerow([named.relative_to(place).as_posix(), HOSTILE[number]])
    return write.write_page(search_stripes(place, place / "manifest.csv", strategies=("linear-probe",)).folder)


def _is_harmless(text):
    """Whether a page, as it was written or as a browser has it, loads and runs nothing."""
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "link", "base", "form", "b"}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        places = [attributes.get(name, "#") for name in ("href", "src", "srcset", "action", "data")]
        assert all(place.startswith(("#", "data:image/jpeg;base64,")) for place in places)
    policy = [found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert "url(" not in text and "@import" not in text
    shown = "".join(page.text)
    assert all(name in shown for name in HOSTILE) and "<b onclick=alert(2)>" in shown


def test_class_names_and_paths_are_text(hostile):
    _is_harmless(hostile.read_text())


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_a_browser_shows_the_page_without_a_request(hostile, tmp_path):
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        threading.Thread(target=_listen, args=(proxy, asked), daemon=True).start()
        leak = tmp_path / "leak.html"
        leak.write_text("<img src='http://leak.example.org/seen'><p>A page with a request")
        _dom(leak, proxy, tmp_path)
        assert any("leak.example.org/seen" in each for each in asked)  # a request would be noticed
        asked.clear()
        dom = _dom(hostile, proxy, tmp_path)
    assert not [each for each in asked if "google" not in each]  # the browser asks its maker for the time
    _is_harmless(dom)


def _dom(page, proxy, place):
    words = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={place / 'profile'}"]
    words += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    words += [f"--proxy-server=127.0.0.1:{proxy.getsockname()[1]}", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([*words, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def _listen(proxy, asked):
    """Note the first line of each request, and refuse it."""
    while True:
        try:
            link, _ = proxy.accept()
        except OSError:
            return
        with link:
            asked.append(link.recv(4096).decode(errors="replace").partition("\r\n")[0])
            link.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def many(few, classes, trials):
    """A study of many classes and trials, made from the records of a small one."""
    draw = np.random.default_rng(0)
    names = tuple(f"class number {number:04d} of many" for number in range(classes))
    result = few.result
    test = result.test.model_copy(update={"classes": {name: OfClass(images=20, right=17) for name in names}})
    known = [record for record in few.records if record.state == "complete"]
    records = [
        replace(known[number % len(known)], number=number, value=draw.random(), plan=_with_seed(known, number))
        for number in range(trials)
    ]
    return replace(
        few,
        definition=few.definition.model_copy(update={"classes": names}),
        result=result.model_copy(update={"test": test}),
        records=tuple(records),
    )


def _with_seed(known, number):
    plan = known[number % len(known)].plan
    return plan.model_copy(update={"seed": number})


def judged(classes, images, place):
    draw = np.random.default_rng(0)
    names = tuple(f"class number {number:04d} of many" for number in range(classes))
    numbers = np.repeat(np.arange(classes), images)
    given = np.where(draw.random(len(numbers)) < 0.7, numbers, draw.integers(classes, size=len(numbers)))
    labelled = stored.Labelled(
        paths=tuple(f"{names[number]}/{at:06d}.jpg" for at, number in enumerate(numbers)),
        labels=tuple(names[number] for number in numbers),
        units=np.arange(len(numbers)),
    )
    return Judged(labelled, predictions.Predictions(given, draw.random(len(numbers))), names, place)


def test_a_page_of_a_thousand_classes_and_ten_thousand_trials_is_small(few_classes, tmp_path):
    large = many(few_classes, classes=1_000, trials=10_000)
    folder = StudyFolder(shutil.copytree(few_classes.folder.path, tmp_path / "stripes"))
    shutil.rmtree(folder.predictions)
    shown = judged(1_000, 20, tmp_path)
    began = time.perf_counter()
    page = write.rendered(facts.facts(replace(large, folder=folder), shown))
    assert time.perf_counter() - began < 60
    assert len(page.encode()) < MOST
    found = pictures(shown)
    assert not found.matrix and len(found.pairs) == 15 and len(found.worst) + len(found.others) == 1_000
    assert [each.right for each in found.worst] == sorted(each.right for each in found.worst)
    assert "trials that are much worse are not shown" in page or "10,000" in page
