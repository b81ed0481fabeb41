"""Bad input and attacks: one line of JSON, nothing outside the service's folder, nothing private in the log."""

from __future__ import annotations

import gzip
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from boltzformer.apps.serve import check_exposure, read_token, taken_place
from boltzformer.apps.service import jobs
from boltzformer.apps.service.uploads import Upload
from boltzformer.errors import InputError

from tests.apps.service.conftest import TOKEN, send, wait
from tests.volumes.small_series import straight, write_small_series


@contextmanager
def before_each_slice(segmenter, call) -> Iterator[None]:
    """Something happens while the real network works."""
    handle = segmenter.network.image_encoder.register_forward_pre_hook(lambda module, inputs: call() and None)
    try:
        yield
    finally:
        handle.remove()


def refused(answer, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error, error
    assert "\n" not in error
    assert "Traceback" not in error
    assert "/tmp" not in error


def failed(told: dict, words: str) -> None:
    assert told["state"] == "failed", told
    assert words in told["error"], told["error"]
    assert "\n" not in told["error"]
    assert "/tmp" not in told["error"]


@pytest.mark.parametrize("name", ["../../../evil.nii.gz", "..\\..\\evil.nii.gz", "/etc/evil.nii.gz", "C:\\evil.NII.GZ"])
def test_no_name_of_a_client_is_a_path(client, scan, name):
    answer = send(client, (name, scan.read_bytes()[:100]))
    failed(wait(client, answer), "evil")
    jobs = Path(f"/api/jobs/{answer.json()['id']}/files")
    for path in ("../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "scan/../../../x"):
        assert client.get(f"{jobs}/{path}").status_code == 404


@pytest.mark.parametrize("path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/docs", "/redoc"])
def test_the_page_serves_its_own_files_only(client, path):
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("files", "fields", "words"),
    [
        ([], {}, "expected a form with files"),
        ([(".DS_Store", b"x")], {}, "no file came"),
        ([("a.nii.gz", b"x"), ("b.dcm", b"x")], {}, "2 files came"),
        ([("a.nii", b"x"), ("b.nii", b"x")], {}, "several NIfTI files"),
        ([("Study 7.ZIP", b"PK")], {}, "Study 7.ZIP: an archive is not unpacked; give one NIfTI file"),
        ([("a.mhd", b"ElementDataFile = /etc/passwd")], {}, "files of this kind are not taken"),
        ([("a.nhdr", b"NRRD0004\ndata file: /etc/passwd")], {}, "files of this kind are not taken"),
        ([("a.nii", b"x")], {"prompt": []}, "no prompt came"),
        ([("a.nii", b"x")], {"prompt": " "}, "prompt is empty"),
        ([("a.nii", b"x")], {"prompt": ["a", "b", "c", "d"]}, "4 prompts came"),
        ([("a.nii", b"x")], {"prompt": ["liver", "Liver"]}, "occurs twice"),
        ([("a.nii", b"x")], {"modality": "X-ray vision"}, "modality"),
        ([("a.nii", b"x")], {"output": "/etc"}, "'output' is not known"),
    ],
)
def test_a_request_that_cannot_be_is_refused_at_once(client, files, fields, words):
    refused(send(client, *files, **fields), 400, words)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ("=?utf-8?B?c2Nhbl/DvC5taGQ=?=", "scan_ü.mhd: files of this kind"),  # as .NET sends scan_ü.mhd
        ("=?iso-8859-1?Q?a=2Fb=FC.mhd?=", "bü.mhd: files of this kind"),
        ("=?no-such-charset?B?c2Nhbi5taGQ=?=.mhd", "files of this kind"),
        ("=?no-such-charset?B?c2Nhbi5taGQ=?=", "holds no DICOM image"),
    ],
)
def test_names_that_came_encoded_as_in_a_mail(client, sent, words):
    answer = send(client, (sent, b"x"))
    assert words in (answer.json().get("error") or wait(client, answer)["error"])


def test_too_much_of_anything(make_client, scan):
    client = make_client(upload_mb=0.05, files=3, waiting=0)
    refused(send(client, ("a.nii", bytes(60_000))), 413, "larger than 0.05 MB")
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'
    kind = {"content-type": "multipart/form-data; boundary=x"}
    endless = (piece for piece in [head, *[bytes(10_000)] * 9])  # no length is announced
    refused(client.post("/api/jobs", content=endless, headers=kind), 413, "larger than 0.05 MB")
    refused(send(client, *[(f"{k}.dcm", b"") for k in range(4)]), 413, "over 3 files")
    refused(send(client, ("a.nii", b""), prompt="a" * 5000), 413, "longer than 4096 bytes")
    refused(client.post("/api/jobs", content=head + b"x", headers=kind), 400, "cut")
    refused(client.post("/api/jobs", content=b"?" * 99, headers=kind), 400, "damaged or cut")
    refused(client.post("/api/jobs", json={}), 400, "expected a form")
    as_text = client.post("/api/jobs", files=[("file", (None, "/data/ct.nii.gz"))], data={"prompt": "nodule"})
    refused(as_text, 400, "'file' came as text; send it as a file")
    # each refusal gave its place back
    assert wait(client, send(client, scan))["state"] == "done"


def test_volumes_that_claim_to_be_huge(client, tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352
    bomb = gzip.compress(header.binaryblock + bytes(4) + bytes(10_000_000))
    assert len(bomb) < 20_000
    failed(wait(client, send(client, ("bomb.nii.gz", bomb))), "bomb.nii.gz")
    image = nib.Nifti1Image(np.zeros((200, 200, 60), np.uint8), np.eye(4)).to_bytes()
    failed(wait(client, send(client, ("large.nii", image))), "2 million voxels; the service takes 2 million")
    (file,) = write_small_series(tmp_path / "wide", straight(1))
    whole = pydicom.dcmread(file)
    whole.Rows = whole.Columns = 60000
    whole.save_as(file)
    failed(wait(client, send(client, file)), "fewer than its 60000 x 60000 pixels need")
    whole.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    whole.save_as(file)
    failed(wait(client, send(client, file)), "deflated")


def test_damaged_files(client, scan, tmp_path):
    whole = scan.read_bytes()
    failed(wait(client, send(client, ("cut.nii.gz", whole[: len(whole) // 2]))), "cut.nii.gz")
    failed(wait(client, send(client, ("noise.nii", np.random.default_rng(0).bytes(5000)))), "noise.nii")
    files = write_small_series(tmp_path / "series", straight(4))
    files[2].write_bytes(files[2].read_bytes()[:300])
    told = wait(client, send(client, *files))
    failed(told, "I002")
    assert "I001" not in told["error"]


def test_a_volume_that_takes_too_long_to_read(make_client, scan):
    client = make_client(read_seconds=0.01)
    failed(wait(client, send(client, scan)), "reading it takes longer than 0.01 s")


def test_a_prompt_is_data(client, scan):
    text = "$__import__('os').system('touch /tmp/evaluated') @x %y"
    told = wait(client, send(client, scan, prompt=text))
    assert told["state"] == "done", told
    assert told["findings"][0]["prompt"] == text
    assert not Path("/tmp/evaluated").exists()


def test_a_full_line_says_when_to_come_back(make_client, segmenter, scan):
    client = make_client(waiting=1)
    go = threading.Event()
    with before_each_slice(segmenter, lambda: go.wait(60)):
        first, second = send(client, scan), send(client, scan)
        third = send(client, scan)
        refused(third, 503, "busy")
        assert 1 <= int(third.headers["retry-after"]) <= 600
        assert client.get(f"/api/jobs/{second.json()['id']}").json()["ahead"] == 1
        assert client.get("/healthz").status_code == 200
        waiting = client.app.state.jobs.find(second.json()["id"])
        assert client.delete(f"/api/jobs/{waiting.key}").status_code == 204
        # the one taken back is gone at once, and its place is free, though another is being worked on
        assert client.get(f"/api/jobs/{waiting.key}").status_code == 404
        assert not waiting.folder.exists()
        fourth = send(client, scan)
        go.set()
        assert wait(client, first)["state"] == "done"
        assert wait(client, fourth)["state"] == "done"
    assert wait(client, send(client, scan))["state"] == "done"
    assert 'boltzformer_refused_total{status="503"} 1.0' in client.get("/metrics").text


def test_a_place_is_free_again_where_no_folder_could_be_made(make_client, scan, monkeypatch):
    client = make_client(waiting=0)
    with monkeypatch.context() as full:
        full.setattr(tempfile, "mkdtemp", lambda **_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert send(client, scan).status_code == 500
    assert wait(client, send(client, scan))["state"] == "done"
    shutil.rmtree(client.app.state.jobs.root)  # as what cleans /tmp does
    assert wait(client, send(client, scan))["state"] == "done"


def test_results_go_in_time_while_another_request_is_worked_on(make_client, segmenter, scan, monkeypatch):
    monkeypatch.setattr(jobs, "_CLEANING_SECONDS", 0.05)
    client = make_client()
    go = threading.Event()
    done = client.app.state.jobs.find(wait(client, send(client, scan))["id"])
    folder = done.folder
    with before_each_slice(segmenter, lambda: go.wait(60)):
        second = send(client, scan)
        done.ended -= 3600.0
        for _ in range(200):
            if not folder.exists():
                break
            threading.Event().wait(0.05)
        running = client.get(f"/api/jobs/{second.json()['id']}").json()["state"]
        gone = not folder.exists()
        go.set()
        wait(client, second)
    assert (running, gone) == ("running", True)


def test_a_job_ends_when_its_time_is_over(make_client, segmenter, scan):
    client = make_client()
    keys: list[str] = []
    sent = threading.Event()

    def time_flies() -> None:
        sent.wait(60)
        client.app.state.jobs.find(keys[0]).seconds = 0.0

    with before_each_slice(segmenter, time_flies):
        answer = send(client, scan)
        keys.append(answer.json()["id"])
        sent.set()
        told = wait(client, answer)
    failed(told, "takes longer than 0 s")
    assert told["slices_done"] < told["slices"]


def test_nothing_private_in_log_or_answer(make_client, segmenter, scan, caplog):
    caplog.set_level(logging.INFO, "boltzformer.apps.service")
    client = make_client()

    def fail() -> None:
        raise RuntimeError("Doe^Jane")

    with before_each_slice(segmenter, fail):
        told = wait(client, send(client, ("Doe_Jane.nii.gz", scan.read_bytes()), prompt="Doe's nodule"))
    failed(told, "the service failed (RuntimeError)")
    wait(client, send(client, ("Doe_Jane.nii.gz", scan.read_bytes()[:50]), prompt="Doe's nodule"))
    wait(client, send(client, ("Doe_Jane.nii.gz", scan.read_bytes()), prompt="Doe's nodule"))
    ours = "\n".join(record.getMessage() for record in caplog.records if "apps.service" in record.name)
    assert "RuntimeError at test_attacks.py" in ours
    assert "done" in ours
    assert "Doe" not in ours + told["error"]
    assert told["id"] not in ours


def test_token(make_client, scan):
    client = make_client(token=TOKEN)
    for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}):
        for path in ("/api/info", "/metrics", "/openapi.json", "/api/jobs/x"):
            answer = client.get(path, headers=given)
            refused(answer, 401, "token")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.post("/api/jobs", headers=given).status_code == 401
    for path in ("/healthz", "/", "/page/page.js"):
        assert client.get(path).status_code == 200
    client.headers["authorization"] = f"Bearer {TOKEN}"
    assert client.get("/api/info").status_code == 200
    assert wait(client, send(client, scan))["state"] == "done"


def test_other_sites_are_kept_out(client, scan):
    refused(client.get("/api/info", headers={"host": "attacker.example"}), 400, "host name")
    other = {"origin": "http://attacker.example"}
    refused(client.post("/api/jobs", files={"file": scan.read_bytes()}, headers=other), 403, "other sites")
    for origin in ("http://[", "null", "http://127.0.0.1:x", ""):
        refused(client.get("/api/info", headers={"origin": origin}), 403, "other sites")
    assert client.get("/api/info", headers={"origin": "http://127.0.0.1", "host": "127.0.0.1"}).status_code == 200
    behind_a_proxy = {"origin": "https://localhost:8443", "host": "localhost:8443"}
    assert client.get("/api/info", headers=behind_a_proxy).status_code == 200
    for host in ("127.0.0.1:8000", "localhost"):  # it names itself, or leaves out the port
        refused(client.get("/api/info", headers={**behind_a_proxy, "host": host}), 403, "pass the Host header on")


def test_a_port_is_held_before_the_network_is_loaded():
    host = "127.0.0.1"
    with taken_place(host, 0) as first:
        port = first.getsockname()[1]
        assert port > 0
        first.listen()
        with pytest.raises(InputError, match=rf"cannot listen on .*:{port} \(Address already in use\); give another"):
            taken_place(host, port)
    taken_place(host, port).close()
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1:0"):  # a documentation address, nobody's
        taken_place("192.0.2.1", 0)


def test_who_may_be_reached_from_outside(tmp_path):
    check_exposure("127.0.0.1", "", None, None)
    check_exposure("::1", "", None, None)
    with pytest.raises(InputError, match="others can reach it"):
        check_exposure("0.0.0.0", "", None, None)
    check_exposure("0.0.0.0", TOKEN, None, None)
    with pytest.raises(InputError, match="belong together"):
        check_exposure("127.0.0.1", "", tmp_path / "cert", None)
    with pytest.raises(InputError, match="no such file"):
        check_exposure("127.0.0.1", "", tmp_path / "cert", tmp_path / "key")


def test_tokens_that_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("BOLTZFORMER_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    file = tmp_path / "token"
    for content, words in (("", "holds no token"), ("short", "16 or more"), ("a b" * 9, "without spaces")):
        file.write_text(content)
        with pytest.raises(InputError, match=words):
            read_token(file)
    file.write_text(TOKEN + "\n")
    assert read_token(file) == TOKEN


def test_messages_name_files_as_the_client_does(tmp_path):
    upload = Upload(tmp_path, names={"a000000": "IM 1", "a000001.dcm": "IM 2.dcm"})
    told = upload.for_client(f"{tmp_path}/a000000 and {tmp_path}/a000001.dcm of {tmp_path}: lie at one place.\n")
    assert told == "IM 1 and IM 2.dcm of the upload: lie at one place."
