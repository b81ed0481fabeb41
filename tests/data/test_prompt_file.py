from __future__ import annotations

import json

import pytest
from boltzformer.data.prompt_file import Prompt, make_prompts, read_prompts
from boltzformer.errors import InputError


@pytest.fixture
def prompt_file(tmp_path):
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
def test_json_forms(prompt_file, content):
    assert read_prompts(prompt_file(content)) == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        'prompt,name\nleft kidney in CT,kidney\n"a cyst, if any",\n',
        '\ufeffName, Prompt\r\nkidney, left kidney in CT\r\n, "a cyst, if any"\r\n',
    ],
)
def test_csv_forms(prompt_file, text):
    assert read_prompts(prompt_file(text, "prompts.csv")) == EXPECTED


def test_a_prompt_is_data_not_configuration(prompt_file):
    nasty = "$__import__('os').getcwd() @a %b #c liver"
    assert read_prompts(prompt_file([nasty]))[0].text == nasty


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
    ],
)
def test_bad_files_are_named(prompt_file, content, name, message):
    path = prompt_file(content, name)
    with pytest.raises(InputError, match=message) as error:
        read_prompts(path)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such prompt file"):
        read_prompts(tmp_path / "p.json")
