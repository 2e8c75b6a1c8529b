"""Statistics files, ours and published ones, and a cache that cannot go stale."""

import numpy as np
import pytest
import torch
from evaluation_stubs import Clf, Pixels, info_of

from genkit.errors import InputError
from genkit.evaluate.cache import cache_path, statistics_of
from genkit.evaluate.extractors import classifier
from genkit.evaluate.statistics import is_statistics, load_statistics, moments, save_statistics
from genkit.io import save_tensors

CPU = torch.device("cpu")


@pytest.fixture
def extractor():
    """Features that are the pixels."""
    return classifier(Clf(), info_of((1, 4, 4)), "ab", CPU)


def test_moments_are_numpys():
    """Oracle: numpy's mean and cov in float64, over more rows than one chunk and far from 0."""
    x = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0)) + 1000
    mu, sigma = moments(x)
    np.testing.assert_allclose(mu, x.double().numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(sigma, np.cov(x.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-12)


def test_npz_round_trip(tmp_path):
    """Oracle: the arrays that numpy wrote, float32 as some publish them, compressed as pytorch-fid does."""
    mu, sigma = np.arange(3.0), np.diag([1.0, 2.0, 0.0])
    for name, save in (("a.npz", np.savez), ("b.npz", np.savez_compressed)):
        save(tmp_path / name, mu=mu.astype(np.float32), sigma=sigma, extra=np.zeros(2))
        found = load_statistics(tmp_path / name)
        assert is_statistics(tmp_path / name)
        assert (found.mu.dtype, found.sigma.dtype) == (torch.float64, torch.float64)
        np.testing.assert_array_equal(found.mu, mu)
        np.testing.assert_array_equal(found.sigma, sigma)
        assert found.n is None
        assert found.extractor is None


BAD = {
    "no sigma": ({"mu": np.zeros(2)}, "no array 'sigma'"),
    "not square": ({"mu": np.zeros(2), "sigma": np.zeros((2, 3))}, r"must be \(D,\) and sigma \(D, D\)"),
    "other length": ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"got \(3,\) and \(2, 2\)"),
    "nan": ({"mu": np.zeros(2), "sigma": np.eye(2) * np.nan}, "NaN"),
    "negative variance": ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "no covariance"),
    "not symmetric": ({"mu": np.zeros(2), "sigma": np.array([[1.0, 1], [0, 1]])}, "no covariance"),
    "integers": ({"mu": np.zeros(2, int), "sigma": np.eye(2)}, "floating point"),
    "pickled": ({"mu": np.array([{}], dtype=object), "sigma": np.eye(2)}, "pickled objects"),
}


@pytest.mark.parametrize("arrays, reason", BAD.values(), ids=BAD.keys())
def test_malformed_npz_is_refused_in_one_line(tmp_path, arrays, reason):
    """Oracle: an InputError that names the file and the reason."""
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match=rf"bad\.npz.*{reason}") as caught:
        load_statistics(tmp_path / "bad.npz")
    assert "\n" not in str(caught.value)


def test_what_is_no_npz_is_refused_in_one_line(tmp_path):
    """Oracle: an InputError for a missing file, text, a bare array, a pickle and every truncation."""
    with pytest.raises(InputError, match="do not exist"):
        load_statistics(tmp_path / "none.npz")
    path = tmp_path / "x.npz"
    np.savez_compressed(path, mu=np.random.default_rng(0).normal(size=20), sigma=np.eye(20))
    whole = path.read_bytes()
    np.array([1.0, 2.0]).dump(tmp_path / "pickle")
    np.save(tmp_path / "bare.npy", np.zeros(3))
    broken = bytearray(whole)
    broken[60] ^= 0xFF
    contents = [
        b"",
        b"text",
        (tmp_path / "pickle").read_bytes(),
        (tmp_path / "bare.npy").read_bytes(),
        bytes(broken),
    ]
    for content in [*contents, *(whole[:k] for k in range(1, len(whole), 97))]:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.npz"):
            load_statistics(path)


def test_own_file_round_trip(tmp_path, extractor):
    """Oracle: equality of every field but the name, which becomes the file's."""
    made = statistics_of(Pixels(9), extractor).statistics
    path = tmp_path / "real.safetensors"
    save_statistics(path, made)
    found = load_statistics(path)
    assert is_statistics(path)
    for key, value in made._replace(name=str(path))._asdict().items():
        other = getattr(found, key)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key


def test_other_genkit_files_are_no_statistics(tmp_path):
    """Oracle: the line says what the file holds instead."""
    path = tmp_path / "z.safetensors"
    save_tensors(path, {"latents": torch.zeros(1, 1, 1, 1)}, "latents", {})
    assert not is_statistics(path)
    with pytest.raises(InputError, match="holds latents"):
        load_statistics(path)


def test_cache_answers_the_same_question_once(extractor, home):
    """Oracle: the images are not read again, and the answer is equal."""
    source = Pixels(20)
    first = statistics_of(source, extractor, features=True)
    assert first.notes == ()
    assert len(list(home.rglob("*.safetensors"))) == 1
    again = statistics_of(source, extractor, features=True)
    assert source.reads == 1
    assert "from the cache" in again.notes[0]
    assert torch.equal(first.statistics.sigma, again.statistics.sigma)
    assert torch.equal(first.statistics.features, again.statistics.features)


def test_cache_misses_when_anything_changes(extractor):
    """Oracle: one pixel, n, the weights: each is another file, and the statistics differ for the pixel."""
    source = Pixels(20)
    before = statistics_of(source, extractor).statistics
    changed = source.data.clone()
    changed[7, 0, 0, 0] ^= 1
    other = Pixels(data=changed)
    after = statistics_of(other, extractor)
    assert other.reads == 1
    assert not torch.equal(before.mu, after.statistics.mu)
    paths = {cache_path(source.info, extractor, 20), cache_path(other.info, extractor, 20)}
    paths.add(cache_path(source.info, extractor, 19))
    paths.add(cache_path(source.info, classifier(Clf(), info_of((1, 4, 4)), "cd", CPU), 20))
    assert len(paths) == 4


@pytest.mark.parametrize("damage", ["truncate", "flip", "other"])
def test_damaged_cache_is_made_again(extractor, home, damage):
    """Oracle: the true statistics, a note, and a whole file afterwards."""
    source = Pixels(20)
    true = statistics_of(source, extractor).statistics
    (path,) = home.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-5])
    elif damage == "flip":
        content[-5] ^= 1
        path.write_bytes(content)
    else:  # a file that is whole, but answers another question
        save_statistics(path, true._replace(fingerprint="another", mu=true.mu + 1))
    found = statistics_of(source, extractor)
    assert "made again" in found.notes[0]
    assert torch.equal(found.statistics.mu, true.mu)
    assert torch.equal(load_statistics(path).mu, true.mu)


def test_large_features_stay_out_of_the_cache(extractor, monkeypatch):
    """Oracle: FID is answered from the cache; KID reads the images again."""
    monkeypatch.setattr("genkit.evaluate.cache._FEATURE_BYTES", 10)
    source = Pixels(20)
    statistics_of(source, extractor)
    assert statistics_of(source, extractor).statistics.features is None
    assert source.reads == 1
    assert statistics_of(source, extractor, features=True).statistics.features.shape == (20, 16)
    assert source.reads == 2


def test_a_cache_that_cannot_be_written_costs_only_a_note(extractor, tmp_path, monkeypatch):
    """Oracle: the statistics, with a note; the cache's place is taken by a file."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENKIT_CACHE", str(tmp_path / "file"))
    found = statistics_of(Pixels(20), extractor)
    assert "not cached" in found.notes[0]
    assert found.statistics.n == 20


def test_no_fingerprint_no_cache(extractor, home):
    """Oracle: nothing is written for a source that cannot say when it changes."""
    source = Pixels(5)
    source.info = source.info._replace(fingerprint="")
    statistics_of(source, extractor)
    assert not list(home.rglob("*.safetensors"))
