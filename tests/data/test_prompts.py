from __future__ import annotations

import json

import pytest
from boltzformer.data.prompts import PromptBook, check_prompt
from boltzformer.errors import InputError


@pytest.fixture
def book_file(tmp_path):
    def write(content):
        path = tmp_path / "prompts.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def test_wordings_in_the_papers_style_come_first():
    wordings = PromptBook().wordings("right_parotid  gland", "CT", "head and neck")
    assert wordings[0] == "right parotid gland in head and neck CT"
    assert len(wordings) == len(set(wordings)) > 3
    assert PromptBook().wordings("neoplasm", "CT", "lung")[0] == "neoplasm in lung CT"
    assert PromptBook().wordings("kidney", "MR", "abdominal")[0] == "kidney in abdominal MRI"


def test_templates_without_their_facts_are_left_out():
    assert PromptBook().wordings("liver", "CT")[0] == "liver in CT"
    assert PromptBook().wordings("liver") == ["liver"]
    with pytest.raises(InputError, match="every wording needs"):
        PromptBook(["{object} in {body_part}"]).wordings("liver")


def test_file_extends_or_replaces(book_file):
    path = book_file({"Lung Cancer": ["neoplasm in {body_part} {modality}", "tumor"], "*": "the {object}"})
    extended = PromptBook(file=path).wordings("lung_cancer", "CT", "lung")
    assert extended[:3] == ["neoplasm in lung CT", "tumor", "the lung cancer"]
    assert "lung cancer in lung CT" in extended
    assert PromptBook(file=path, file_mode="replace").wordings("lung cancer", "CT", "lung") == extended[:3]
    only_tumor = book_file({"lung cancer": "tumor"})
    assert PromptBook(file=only_tumor, file_mode="replace").wordings("heart")[0] == "heart"


def test_a_cases_own_prompts_are_used_alone():
    case = {
        "objects": {1: "cyst", 2: "liver"},
        "modality": "CT",
        "body_part": "",
        "prompts": {1: ["renal cyst"]},
    }
    assert PromptBook().for_case(case, 1) == ["renal cyst"]
    assert PromptBook().for_case(case, 2)[0] == "liver in CT"


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
    ],
)
def test_malformed_files_are_named(book_file, content):
    path = book_file(content)
    with pytest.raises(InputError, match=r"prompts\.json"):
        PromptBook(file=path)


def test_missing_file_and_bad_templates(tmp_path):
    with pytest.raises(InputError, match="no such prompt file"):
        PromptBook(file=tmp_path / "x.json")
    with pytest.raises(InputError, match="same prompt"):
        PromptBook(["segment it"])
    with pytest.raises(InputError, match="templates"):
        PromptBook("{object}")
    with pytest.raises(InputError, match="file_mode"):
        PromptBook(file_mode="add")


def test_check_prompt_tidies():
    assert check_prompt("  left \n kidney  in\tCT ") == "left kidney in CT"
    assert check_prompt("肝臓の腫瘍") == "肝臓の腫瘍"
    assert check_prompt("$@import('x')#liver") == "$@import('x')#liver"


@pytest.mark.parametrize("text", ["", "  \n", "123", "?!", None, 5, ["liver"], b"liver", "a\x00b", "x" * 1001])
def test_check_prompt_refuses(text):
    with pytest.raises(InputError, match="here: "):
        check_prompt(text, "here")
