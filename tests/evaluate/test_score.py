"""What eval-fid reports, refuses and warns of; and that several processes give the answer of one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_stubs import Clf, Pixels, info_of

from genkit.errors import InputError
from genkit.evaluate import classifier, load_statistics, save_statistics, score
from genkit.evaluate.extractors import Extractor, Features
from genkit.evaluate.features import _gather, extract
from genkit.evaluate.statistics import measure
from genkit.evaluate.subset import spread

CPU = torch.device("cpu")
ALL = ("fid", "kid", "prc", "isc")


@pytest.fixture
def extractor():
    """Features that are the pixels."""
    return classifier(Clf(), info_of((1, 4, 4)), "ab", CPU)


def test_everything_about_two_sets(extractor):
    """Oracle: FID of independent uniform pixels of two ranges in closed form, |mu|² + sum (s1 - s2)²."""
    fake, real = Pixels(2100, seed=1, high=128), Pixels(2100, seed=2)
    seen = []
    found = score(fake, real, extractor, ("fid", "prc", "isc"), progress=lambda *a: seen.append(a))
    levels = torch.arange(256).double() / 127.5 - 1
    mu, s = (levels[:128].mean() - levels.mean()), levels[:128].std() - levels.std()
    # both means and spreads are known to about 1 / sqrt(2100)
    assert found.fid == pytest.approx(16 * (mu**2 + s**2).item(), rel=0.05)
    assert found.fid_low < found.fid < found.fid_high
    assert found.kid is None
    assert 0 <= found.recall <= found.precision <= 1
    assert 1 <= found.isc <= 3
    assert 0 < found.confident < 1
    assert 1 < found.classes <= 3
    assert (found.n_fake, found.n_real, found.size_fake) == (2100, 2100, (1, 4, 4))
    assert found.warnings == ()
    assert seen[-1] == ("pixels2", 2100, 2100)
    assert "4x4" in found.resize


def test_batch_size_and_cache_do_not_change_the_scores(extractor):
    """Oracle: equality of every number (features here are exact in float32)."""
    fake, real = Pixels(70, seed=1), Pixels(90, seed=2)
    one = score(fake, real, extractor, ALL, batch_size=7)
    assert score(fake, real, extractor, ALL, batch_size=64)._replace(notes=()) == one._replace(notes=())
    reads = real.reads
    assert score(fake, real, extractor, ALL).fid == one.fid
    assert real.reads == reads


def test_warnings_name_what_is_wrong(extractor):
    """Oracle: small sets, another size and the same images each give their line."""
    small = score(Pixels(500, seed=1), Pixels(600, (3, 5, 6), seed=2), extractor, ("fid",)).warnings
    assert "n = 500 < 2,048 fake" in small[0]
    assert "biased upwards" in small[0]
    assert "n = 600 < 2,048 real" in small[1]
    assert "4x4 grey, real ones 6x5 RGB" in small[2]
    source = Pixels(20)
    assert "same images" in score(source, source, extractor, ("fid",)).warnings[-1]


def test_limit_takes_images_of_the_whole(extractor):
    """Oracle: a source that holds only those."""
    fake, real = Pixels(50, seed=1), Pixels(60, seed=2)
    found = score(fake, real, extractor, ALL, limit=40)
    some = [Pixels(data=s.data[spread(len(s.data), 40)]) for s in (fake, real)]
    alone = score(*some, extractor, ALL)
    assert (found.fid, found.kid, found.n_fake, found.n_real) == (alone.fid, alone.kid, 40, 40)


def test_statistics_files_on_either_side(extractor, tmp_path):
    """Oracle: the scores of the images themselves; two files need no extractor."""
    fake, real = Pixels(50, seed=1), Pixels(60, seed=2)
    expected = score(fake, real, extractor, ALL)
    files = []
    for name, source in (("fake", fake), ("real", real)):
        path = tmp_path / f"{name}.safetensors"
        save_statistics(path, measure(extract(source, extractor), source.info, extractor))
        files.append(load_statistics(path))
    for pair in ((fake, files[1]), (files[0], real), (files[0], files[1])):
        found = score(*pair, None if pair == tuple(files) else extractor, ALL)
        assert (found.fid, found.kid, found.precision, found.isc) == (
            expected.fid,
            expected.kid,
            expected.precision,
            expected.isc,
        )


def test_published_statistics_give_fid_with_a_note_and_nothing_else(extractor, tmp_path):
    """Oracle: the FID of the images themselves, and a line that names why KID is impossible."""
    fake, real = Pixels(50, seed=1), Pixels(60, seed=2)
    moments = measure(extract(real, extractor), real.info, extractor)
    np.savez(tmp_path / "ref.npz", mu=moments.mu.numpy(), sigma=moments.sigma.numpy())
    published = load_statistics(tmp_path / "ref.npz")
    found = score(fake, published, extractor, ("fid",))
    assert found.fid == score(fake, real, extractor, ("fid",)).fid
    assert found.n_real is None
    assert "does not say by which network" in found.notes[0]
    with pytest.raises(InputError, match=r"ref\.npz.*mean and a covariance only"):
        score(fake, published, extractor, ("fid", "kid"))
    with pytest.raises(InputError, match=r"ref\.npz.*no class scores"):
        score(published, real, extractor, ("isc",))
    assert "no interval" in score(published, real, extractor, ("fid",)).notes[-1]


def test_statistics_of_another_extractor_are_refused(extractor):
    """Oracle: an InputError, before an image is read, for other weights and for another width."""
    real = Pixels(60, seed=2)
    found = measure(extract(real, extractor), real.info, extractor)
    fake = Pixels(50)
    with pytest.raises(InputError, match="was measured by genkit-classifier/16 sha256:cd"):
        score(fake, found._replace(extractor="genkit-classifier/16 sha256:cd"), extractor, ("fid",))
    with pytest.raises(InputError, match="has 3 features and this run 16"):
        score(
            fake, found._replace(mu=torch.zeros(3), sigma=torch.eye(3), extractor=None), extractor, ("fid",)
        )
    assert fake.reads == 0


def test_impossible_requests_are_refused_in_one_line(extractor):
    """Oracle: an InputError that names the value."""
    good = Pixels(5)
    with pytest.raises(InputError, match="did you mean 'kid'"):
        score(good, good, extractor, ("kidd",))
    with pytest.raises(InputError, match="no metric"):
        score(good, good, extractor, ())
    for few, limit in ((Pixels(1), None), (good, 1), (Pixels(0), None)):
        with pytest.raises(InputError, match="at least 2 images"):
            score(few, good, extractor, ("fid",), limit=limit)
    latents = Pixels(5)
    latents.info = latents.info._replace(kind="latents")
    with pytest.raises(InputError, match="decode them"):
        score(latents, good, extractor, ("fid",))


SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from evaluation_stubs import Clf, Pixels, info_of
from genkit import dist
from genkit.evaluate import classifier, score
device = torch.device("cpu")
dist.start(device)
clf = classifier(Clf(), info_of((1, 4, 4)), "ab", device)
fake = Pixels(11, seed=1)
found = score(fake, Pixels(4, seed=2), clf, ("fid", "kid", "isc"), batch_size=2)
print(found.fid, found.kid, found.isc, fake.reads) if found else print("none", fake.reads)
dist.stop()
"""


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(extractor, tmp_path):
    """Oracle: the same call in one process; 11 images do not divide by 2."""
    one = score(Pixels(11, seed=1), Pixels(4, seed=2), extractor, ("fid", "kid", "isc"))
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    here = Path(__file__).parent
    root = here.parents[1]
    port = 20000 + os.getpid() % 20000
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(root),
    }
    runs = [
        subprocess.Popen(
            [sys.executable, str(script), str(here)],
            env={**os.environ, **common, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    lines = [run.communicate(timeout=100)[0].split() for run in runs]
    assert [float(v) for v in lines[0]] == [one.fid, one.kid, one.isc, 3]
    assert lines[1] == ["none", "3"]  # 5 and 6 images in batches of 2: none is read twice


@pytest.mark.parametrize("n", [2, 11])
def test_parts_of_three_processes_make_the_whole(extractor, monkeypatch, n):
    """Oracle: one process. Three have 3, 4, 4 of 11 images; of 2, the first has none and reads nothing."""
    source = Pixels(n)
    whole = extract(source, extractor).features
    source.reads, parts = 0, []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(extract(source, extractor).features)
    assert [len(part) for part in parts] == [n * (r + 1) // 3 - n * r // 3 for r in range(3)]
    assert source.reads == sum(len(part) > 0 for part in parts)
    assert torch.equal(torch.cat(parts), whole)

    def all_gather(received, mine):
        for slot, part in zip(received, parts):
            slot.zero_()[: len(part)] = part
        assert mine.shape == received[0].shape

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    assert torch.equal(_gather(parts[2], n, CPU), whole)


def test_accuracy_of_labelled_images():
    """Oracle: by hand. Classes are met by name, whatever their order; unknown names give no number."""
    fake = Pixels(6)
    fake.labels = torch.tensor([0, 1, 0, 1, 0, 1])
    fake.info = fake.info._replace(classes=("cat", "dog"))
    answers = torch.eye(3)[torch.tensor([2, 0, 2, 2, 0, 0])]  # dog is the classifier's 0, cat its 2

    def apply(images):
        return Features(images.flatten(1).float(), answers[: len(images)])

    extractor = Extractor(
        "genkit-classifier/16 test", 16, 3, "", torch.device("cpu"), apply, ("dog", "cow", "cat")
    )
    found = score(fake, Pixels(6, seed=1), extractor, ("fid",), cache=False)
    assert found.accuracy == pytest.approx(4 / 6)
    fake.info = fake.info._replace(classes=("cat", "horse"))
    assert score(fake, Pixels(6, seed=1), extractor, ("fid",), cache=False).accuracy is None
