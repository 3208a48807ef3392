"""What the tests of the report share: advice that was made up, and a page that was read."""

from html.parser import HTMLParser

from autotl.tracking.advice import Advice, AtCut, Similarity


def advice(late, per_class):
    """That of images which pretrained features separate well, at the last cut by `late`."""
    cuts = tuple(AtCut(cut=f"stages.{at}", pretrained=value, random=0.5) for at, value in enumerate((0.6, 0.9, late)))
    found = Similarity(backbone="tiny:net", images=400, cuts=cuts, references={"reference:pixels": 0.55}, chance=0.34)
    situations = (f"{'few' if per_class < 50 else 'many'}-{'similar' if late > 0.8 else 'different'}",)
    return Advice(
        per_class=per_class,
        similarity=found,
        situations=situations,
        suggested=("linear-probe", "fine-tune", "full"),
        others=(),
    )


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    @property
    def parts(self):
        return [found["id"] for tag, found in self.tags if tag == "section"]
