from __future__ import annotations

import json

import pytest
from boltzformer.data.prompts import Prompt, check_prompt, make_prompts, read_prompt_list
from boltzformer.errors import InputError


@pytest.fixture
def prompt_list(tmp_path):
    def write(content, name="prompts.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


EXPECTED = [Prompt("left kidney in CT", "kidney"), Prompt("a cyst, if any", "a_cyst_if_any")]


@pytest.mark.parametrize(
    "content",
    [
        [{"prompt": "left kidney in CT", "name": "kidney"}, "a cyst, if any"],
        {"prompts": [{"prompt": "left kidney in CT", "name": "kidney"}, {"prompt": "a cyst, if any"}]},
        {"kidney": "left kidney in CT", "a_cyst_if_any": "a cyst, if any"},
    ],
)
def test_json_forms(prompt_list, content):
    assert read_prompt_list(prompt_list(content)) == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        'prompt,name\nleft kidney in CT,kidney\n"a cyst, if any",\n',
        '\ufeffName, Prompt\r\nkidney, left kidney in CT\r\n, "a cyst, if any"\r\n',
    ],
)
def test_csv_forms(prompt_list, text):
    assert read_prompt_list(prompt_list(text, "prompts.csv")) == EXPECTED


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_of_a_spreadsheet(prompt_list, separator):
    """Separator of the country, byte order mark, CRLF, and empty columns and rows at the end of the sheet."""
    rows = [
        ["Name", "Prompt", ""],
        ["a", '"liver, left part"' if separator == "," else "liver, left part", ""],
        [""] * 3,
    ]
    text = "\ufeff" + "".join(separator.join(row) + "\r\n" for row in rows)
    assert read_prompt_list(prompt_list(text, "p.csv")) == [Prompt("liver, left part", "a")]


def test_csv_in_another_encoding_is_told_which(prompt_list):
    path = prompt_list("", "p.csv")
    path.write_bytes("prompt\nMS-L\u00e4sion\n".encode("cp1252"))
    with pytest.raises(InputError, match="save it as UTF-8"):
        read_prompt_list(path)


def test_a_prompt_is_data_not_configuration(prompt_list):
    nasty = "$__import__('os').getcwd() @a %b #c liver"
    assert read_prompt_list(prompt_list([nasty]))[0].text == nasty


def test_made_names_are_unique_and_short():
    prompts = make_prompts([("Liver!", None), ("liver?", ""), ("liver " * 30, None), ("肝臓", None)])
    assert [prompt.name for prompt in prompts][:2] == ["liver", "liver_2"]
    assert len({prompt.name for prompt in prompts}) == 4
    assert max(len(prompt.name) for prompt in prompts) <= 64


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("[]", "p.json", "no prompt"),
        ("[1]", "p.json", "must be text"),
        ('[""]', "p.json", "empty"),
        ("{", "p.json", "JSON"),
        ('"liver"', "p.json", "expected a list"),
        ('[{"text": "liver"}]', "p.json", "keys"),
        ('["liver", "Liver"]', "p.json", "occurs twice"),
        ('{"a/b": "liver"}', "p.json", "file name"),
        ('[{"prompt": "a", "name": "x"}, {"prompt": "b", "name": "X"}]', "p.json", "occurs twice"),
        ("", "p.csv", "first line"),
        ("text\nliver\n", "p.csv", "first line"),
        ("prompt\n", "p.csv", "no prompt"),
        ("prompt,name\na,b,c\n", "p.csv", "quotes"),
        ("prompt,name\n,b\n", "p.csv", "empty"),
        ("liver", "p.txt", "json or .csv"),
        ('{"a": "liver", "a": "aorta"}', "p.json", "'a' stands twice"),
        ('[{"prompt": "liver", "prompt": "aorta"}]', "p.json", "'prompt' stands twice"),
        pytest.param("[" * 100000, "p.json", "nested too deeply", id="deep"),
        ("prompt,Prompt\nliver,aorta\n", "p.csv", "column stands twice"),
        ('prompt\n"left\nkidney"\n', "p.csv", "line 3: a quoted cell goes over several lines"),
        ('prompt,name\n"liver,a\naorta,b\n', "p.csv", "close the quote"),
        pytest.param("prompt\n" + "a" * 200000, "p.csv", "field larger than", id="long"),
    ],
)
def test_bad_files_are_named(prompt_list, content, name, message):
    path = prompt_list(content, name)
    with pytest.raises(InputError, match=message) as error:
        read_prompt_list(path)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such prompt list"):
        read_prompt_list(tmp_path / "p.json")


@pytest.mark.parametrize(
    "content",
    [
        ["{object} in {body_part} {modality}"],
        {"cancer": ["neoplasm in lung CT", "lung tumor"]},
        {"cancer": "neoplasm in {body_part} {modality}"},
        {"*": "the object"},
    ],
)
def test_a_wording_book_is_no_prompt_list(prompt_list, content):
    with pytest.raises(InputError, match=r"a wording book, which holds templates .* `wording_book`"):
        read_prompt_list(prompt_list(content))


def test_check_prompt_tidies():
    assert check_prompt("  left \n kidney  in\tCT ") == "left kidney in CT"
    assert check_prompt("肝臓の腫瘍") == "肝臓の腫瘍"
    assert check_prompt("$@import('x')#liver") == "$@import('x')#liver"


@pytest.mark.parametrize("text", ["", "  \n", "123", "?!", None, 5, ["liver"], b"liver", "a\x00b", "x" * 1001])
def test_check_prompt_refuses(text):
    with pytest.raises(InputError, match="here: "):
        check_prompt(text, "here")
