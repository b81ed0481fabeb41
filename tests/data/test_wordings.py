from __future__ import annotations

import json

import pytest
from boltzformer.data.wordings import WordingBook
from boltzformer.errors import InputError


@pytest.fixture
def book_file(tmp_path):
    def write(content):
        path = tmp_path / "wordings.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_wordings_in_the_papers_style_come_first():
    wordings = WordingBook().wordings("right_parotid  gland", "CT", "head and neck")
    assert wordings[0] == "right parotid gland in head and neck CT"
    assert len(wordings) == len(set(wordings)) > 3
    assert WordingBook().wordings("neoplasm", "CT", "lung")[0] == "neoplasm in lung CT"
    assert WordingBook().wordings("kidney", "MR", "abdominal")[0] == "kidney in abdominal MRI"


def test_templates_without_their_facts_are_left_out():
    assert WordingBook().wordings("liver", "CT")[0] == "liver in CT"
    assert WordingBook().wordings("liver") == ["liver"]
    with pytest.raises(InputError, match="every wording needs"):
        WordingBook(["{object} in {body_part}"]).wordings("liver")


def test_file_extends_or_replaces(book_file):
    path = book_file({"Lung Cancer": ["neoplasm in {body_part} {modality}", "tumor"], "*": "the {object}"})
    extended = WordingBook(file=path).wordings("lung_cancer", "CT", "lung")
    assert extended[:3] == ["neoplasm in lung CT", "tumor", "the lung cancer"]
    assert "lung cancer in lung CT" in extended
    assert WordingBook(file=path, file_mode="replace").wordings("lung cancer", "CT", "lung") == extended[:3]
    only_tumor = book_file({"lung cancer": "tumor"})
    assert WordingBook(file=only_tumor, file_mode="replace").wordings("heart")[0] == "heart"


def test_a_cases_own_prompts_are_used_alone():
    case = {
        "objects": {1: "cyst", 2: "liver"},
        "modality": "CT",
        "body_part": "",
        "prompts": {1: ["renal cyst"]},
    }
    assert WordingBook().for_case(case, 1) == ["renal cyst"]
    assert WordingBook().for_case(case, 2)[0] == "liver in CT"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        {"a": []},
        {"a": [1]},
        {"a": " "},
        {"a": "{objekt}"},
        {"a": "{object"},
        {"a": {"b": "c"}},
        {"a": "{object!r}"},
        {"a": "{object:>99}"},
        {"Lung Cancer": "tumor", "lung_cancer": "cancer"},
        '{"a": "tumor", "a": "cancer"}',
        pytest.param('{"a": ' * 100000, id="deep"),
    ],
)
def test_malformed_files_are_named(book_file, content):
    path = book_file(content)
    with pytest.raises(InputError, match=r"wordings\.json"):
        WordingBook(file=path)


def test_missing_file_and_bad_templates(tmp_path):
    with pytest.raises(InputError, match="no such wording book"):
        WordingBook(file=tmp_path / "x.json")
    with pytest.raises(InputError, match="same prompt"):
        WordingBook(["segment it"])
    with pytest.raises(InputError, match="templates"):
        WordingBook("{object}")
    with pytest.raises(InputError, match="file_mode"):
        WordingBook(file_mode="add")


@pytest.mark.parametrize(
    "content", [["lung nodule in chest CT"], {"prompts": ["nodule"]}, [{"name": "nodule", "prompt": "lung nodule"}]]
)
def test_a_prompt_list_is_no_wording_book(book_file, content):
    with pytest.raises(InputError, match=r"this is a prompt list.*`prompt_list`"):
        WordingBook(file=book_file(content))
