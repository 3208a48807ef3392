import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from autotl.engine.heads import LinearHead, Scaling, logistic_path
from autotl.engine.probe import PENALTIES, neighbour_accuracy, ridge_accuracy
from autotl.engine.sample import subset


def blobs(n=200, d=20, classes=4, seed=0):
    """Overlapping classes; features of very different scale and offset."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=draw)
    features = centres[labels] + 1.5 * torch.randn(n, d, generator=draw)
    return (features + torch.linspace(-5, 5, d)) * torch.logspace(-3, 3, d), labels


@pytest.mark.parametrize("penalty", [1e-3, 1e-1, 10.0])
def test_a_head_is_scikit_learns_logistic_regression_on_standardised_features(penalty):
    features, labels = blobs()
    (head,) = logistic_path(features, labels, 4, [penalty])
    scaler = StandardScaler().fit(features.double().numpy())
    theirs = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-9, max_iter=5000)
    theirs.fit(scaler.transform(features.double().numpy()), labels.numpy())
    expected = theirs.predict_proba(scaler.transform(features.double().numpy()))
    ours = head(features).softmax(1).numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_balanced_weights_are_scikit_learns():
    features, labels = blobs()
    kept = (labels != 3) | (torch.arange(len(labels)) < 20)  # one class has few images
    features, labels = features[kept], labels[kept]
    (head,) = logistic_path(features, labels, 4, [0.1], class_weights="balanced")
    scaled = StandardScaler().fit_transform(features.double().numpy())
    theirs = LogisticRegression(C=10 / len(labels), tol=1e-9, max_iter=5000, class_weight="balanced")
    expected = theirs.fit(scaled, labels.numpy()).predict_proba(scaled)
    np.testing.assert_allclose(head(features).softmax(1).numpy(), expected, atol=2e-3)


def test_the_path_comes_in_the_order_of_its_penalties():
    features, labels = blobs()
    norms = [
        head.weight.mul(features.std(0)).norm().item() for head in logistic_path(features, labels, 4, [1e-4, 10, 0.1])
    ]
    assert norms[0] > norms[2] > norms[1]


def test_a_constant_feature_has_no_effect():
    features, labels = blobs()
    features[:, 3] = 0.1
    (head,) = logistic_path(features, labels, 4, [1e-2])
    assert head.weight[:, 3].abs().max() == 0
    assert torch.isfinite(head(features)).all()


def test_the_folded_head_equals_the_head_on_scaled_features():
    features, _ = blobs()
    scaling = Scaling.of(features)
    head = LinearHead(torch.randn(4, 20), torch.randn(4))
    torch.testing.assert_close(scaling.fold(head)(features), head(scaling.apply(features)), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(40, 6), (24, 60)], ids=["more images", "more features"])
def test_the_probe_is_exact_leave_one_out(n, d):
    features, labels = blobs(n, d, classes=3)
    scaled = Scaling.of(features).apply(features).double()
    target = torch.nn.functional.one_hot(labels, 3).double()
    best = 0.0
    for penalty in PENALTIES:
        right = 0
        for out in range(n):
            keep = torch.arange(n) != out
            # Ridge with an intercept that is not penalised, on all images except one.
            x, y = scaled[keep], target[keep]
            x_mean, y_mean = x.mean(0), y.mean(0)
            gram = (x - x_mean).T @ (x - x_mean) + penalty * n * torch.eye(d, dtype=torch.float64)
            weight = torch.linalg.solve(gram, (x - x_mean).T @ (y - y_mean))
            right += ((scaled[out] - x_mean) @ weight + y_mean).argmax() == labels[out]
        best = max(best, right.item() / n)
    assert ridge_accuracy(features, labels, 3, torch.arange(n)) == pytest.approx(best)
    assert 1 / 3 < best < 1
    twice = ridge_accuracy(features.repeat(2, 1), labels.repeat(2), 3, torch.arange(n).repeat(2))
    assert twice == pytest.approx(best, abs=1 / n)  # a copy of an image is held out with it


def test_the_probe_holds_out_whole_groups():
    """Features that identify the group and nothing else, and random labels."""
    of_group = torch.randn(40, 60, generator=torch.Generator().manual_seed(0))
    units = torch.arange(40).repeat_interleave(5)
    features = of_group[units] + 0.01 * torch.randn(200, 60, generator=torch.Generator().manual_seed(1))
    labels = (torch.arange(40) % 2)[torch.randperm(40, generator=torch.Generator().manual_seed(2))][units]
    assert ridge_accuracy(features, labels, 2, torch.arange(200)) == 1
    assert ridge_accuracy(features, labels, 2, units) < 0.65


def test_the_probe_uses_the_same_images_at_every_cut():
    labels = torch.arange(5000) % 7
    assert torch.equal(subset(labels, seed=1), subset(labels, seed=1))
    assert len(subset(labels, seed=1).unique()) == 1000
    assert not torch.equal(subset(labels, seed=1), subset(labels, seed=2))
    assert subset(labels[:17], seed=1).tolist() == list(range(17))


def test_the_probe_uses_images_of_every_class():
    rare = torch.cat([torch.zeros(9000, dtype=torch.int64), torch.arange(1, 400), torch.arange(1, 400)])
    seen = rare[subset(rare, seed=0)]
    assert len(seen) == 2000
    assert torch.bincount(seen)[1:].tolist() == [2] * 399
    assert len(subset(torch.arange(20_000) % 1000, seed=0)) == 5000


def test_neighbours_vote_without_the_image_itself_and_its_copies():
    from sklearn.datasets import make_blobs
    from sklearn.model_selection import LeaveOneOut, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    points, labels = make_blobs(90, 4, centers=3, cluster_std=5.0, random_state=0)
    features, labels = torch.from_numpy(points).float(), torch.from_numpy(labels)
    found = neighbour_accuracy(features, labels, 3, torch.arange(90))
    scaled = torch.nn.functional.normalize(Scaling.of(features).apply(features).double()).numpy()
    votes = KNeighborsClassifier(5, weights=lambda distances: 1 + 1e-3 * (1 - distances**2 / 2))
    theirs = cross_val_predict(votes, scaled, labels.numpy(), cv=LeaveOneOut())
    assert 0.4 < found < 1 and found == pytest.approx((theirs == labels.numpy()).mean())

    copies, units = features.repeat(4, 1), torch.arange(90).repeat(4)
    at_random = torch.randint(3, (90,), generator=torch.Generator().manual_seed(0)).repeat(4)
    assert neighbour_accuracy(copies, at_random, 3, units) < 0.6
    assert neighbour_accuracy(copies, at_random, 3, torch.arange(360)) == 1
