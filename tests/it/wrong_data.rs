//! Wrong data as a user hands it over: what each mistake in a file ends with, and what the message says.

use crate::support::command::{asft, ends, set};
use std::path::Path;

/// A mistake: the file's name and text, the format, the exit code, and what the message must hold.
type Row = (&'static str, &'static str, &'static str, i32, &'static [&'static str]);

/// What `asft data` says of the file, with further settings.
#[track_caller]
fn told(dir: &Path, (name, text, format, code, needles): Row, settings: &[&str]) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    let mut command = asft(&["data", "--config", "configs/tiny.toml"]);
    set(&mut command, &[&format!("data.train={}", path.display()), &format!("data.format={format}")]);
    set(&mut command, settings);
    ends(command, code, needles)
}

#[track_caller]
fn all_told(rows: &[Row]) {
    let scratch = tempfile::tempdir().unwrap();
    for row in rows {
        let message = told(scratch.path(), *row, &[]);
        assert!(!message.contains("panicked"), "{row:?}: {message}");
    }
}

#[test]
fn files_that_are_not_what_they_seem() {
    all_told(&[
        ("a.jsonl", "", "alpaca", 2, &["a.jsonl is empty: expected at least one record"]),
        ("a.json", "[]", "alpaca", 2, &["a.json is empty"]),
        ("a.csv", "instruction,output\n", "alpaca", 2, &["a.csv is empty"]),
        ("a.csv", "instruction,output,output\na,b,c\n", "alpaca", 2, &["a.csv:1: two columns are named \"output\""]),
        ("a.csv", "instruction,output\na,b,c\n", "alpaca", 2, &["a.csv:2", "has 3 fields, the header has 2"]),
        ("a.csv", "instruction,output\na,\"b\n", "alpaca", 2, &["a.csv:2: a quote that opens", "never closed"]),
        (
            "a.csv",
            "instruction;output\na;b\n",
            "alpaca",
            2,
            &["a.csv:2", "`instruction` is missing", "instruction;output"],
        ),
        ("a.tsv", "instruction,output\na,b\n", "alpaca", 2, &["a.tsv:2", "fields found: instruction,output"]),
        (
            "a.jsonl",
            "instruction,output\na,b\n",
            "alpaca",
            2,
            &["2 of 2 records", "a.jsonl:1: malformed", ".csv, .tsv"],
        ),
        (
            "a.jsonl",
            "{\"instruction\": \"a\",\n\"output\": \"b\"}\n",
            "alpaca",
            2,
            &["a.jsonl:1: malformed", "one object a line"],
        ),
        ("a.jsonl", "{'instruction': 'a', 'output': 'b'}\n", "alpaca", 2, &["a.jsonl:1: malformed JSON at column 2"]),
        ("a.jsonl", "{\"instruction\": \"a\", \"output\": NaN}\n", "alpaca", 2, &["a.jsonl:1: malformed JSON"]),
        (
            "a.json",
            "[{\"instruction\": \"a\", \"output\": \"b\"},]",
            "alpaca",
            2,
            &["a.json:1: malformed JSON: trailing comma"],
        ),
        ("a.json", "[{\"instruction\": \"a\", \"output\": \"b\"}", "alpaca", 2, &["a.json:1: malformed JSON: EOF"]),
        (
            "a.json",
            "[1, {\"instruction\": \"a\", \"output\": \"b\"}, \"x\"]",
            "alpaca",
            2,
            &[
                "2 of 3 records",
                "record 1: expected a JSON object, got a number",
                "record 3: expected a JSON object, got a string",
            ],
        ),
        (
            "a.json",
            "{\"data\": [{\"instruction\": \"a\", \"output\": \"b\"}]}",
            "alpaca",
            2,
            &["a.json:1: field `instruction` is missing", "fields found: data"],
        ),
        ("a.jsonl", "null\n", "text", 2, &["a.jsonl:1: expected a JSON object, got null"]),
        ("a.parquet", "PAR1 and no more", "text", 2, &["a.parquet: not a readable Parquet file"]),
    ]);
}

#[test]
fn fields_that_do_not_fit() {
    all_told(&[
        (
            "a.jsonl",
            "{\"instruction\": \"a\"}\n",
            "alpaca",
            2,
            &["a.jsonl:1: field `output` is missing, expected a string", "check `data.format`"],
        ),
        ("a.jsonl", "{\"instruction\": \"a\", \"output\": null}\n", "alpaca", 2, &["field `output` is null"]),
        (
            "a.jsonl",
            "{\"instruction\": \"a\", \"output\": 3}\n",
            "alpaca",
            2,
            &["field `output` is a number, expected a string"],
        ),
        (
            "a.jsonl",
            "{\"instruction\": \"a\", \"input\": [], \"output\": \"b\"}\n",
            "alpaca",
            2,
            &["field `input` is a list"],
        ),
        (
            "a.jsonl",
            "{\"Instruction\": \"a\", \"Output\": \"b\"}\n",
            "alpaca",
            2,
            &["`instruction` is missing", "fields found: Instruction, Output"],
        ),
        (
            "a.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n",
            "alpaca",
            2,
            &["`instruction` is missing", "these are the fields of `data.format = \"chat\"`"],
        ),
        ("a.jsonl", "{\"conversations\": []}\n", "chat", 2, &["`messages` is missing", "`data.format = \"sharegpt\"`"]),
        (
            "a.csv",
            "prompt,completion\na,b\n",
            "alpaca",
            2,
            &["a.csv:2: field `instruction`", "`data.format = \"prompt_completion\"`"],
        ),
        (
            "a.jsonl",
            "{\"instruction\": \"a\", \"output\": \"b\"}\n",
            "prompt_completion",
            2,
            &["`prompt` is missing", "`data.format = \"alpaca\"`"],
        ),
        (
            "a.jsonl",
            "{\"input_ids\": [1], \"labels\": [1]}\n",
            "text",
            2,
            &["`text` is missing", "`data.format = \"tokenized\"`"],
        ),
        ("a.jsonl", "{\"text\": [\"a\"]}\n", "text", 2, &["field `text` is a list, expected a string"]),
        (
            "a.jsonl",
            "{\"prompt\": \"a\", \"completion\": {\"text\": \"b\"}}\n",
            "prompt_completion",
            2,
            &["field `completion` is an object"],
        ),
        (
            "a.jsonl",
            "{\"input_ids\": [1, 2], \"labels\": [1]}\n",
            "tokenized",
            2,
            &["input_ids holds 2 values and labels 1"],
        ),
        (
            "a.jsonl",
            "{\"input_ids\": [1, -2], \"labels\": [1, 1]}\n",
            "tokenized",
            2,
            &["input_ids[1] is -2, expected a token id"],
        ),
        (
            "a.jsonl",
            "{\"input_ids\": [1, 99999999], \"labels\": [1, 1]}\n",
            "tokenized",
            2,
            &["input_ids[1] is 99999999"],
        ),
        (
            "a.jsonl",
            "{\"input_ids\": [1, 2], \"labels\": [1, -1]}\n",
            "tokenized",
            2,
            &["labels[1] is -1, expected -100"],
        ),
        (
            "a.jsonl",
            "{\"input_ids\": [1, 2], \"labels\": [-100, -100]}\n",
            "tokenized",
            2,
            &["no token of this sample is a label"],
        ),
        ("a.jsonl", "{\"input_ids\": [], \"labels\": []}\n", "tokenized", 2, &["input_ids is empty"]),
        (
            "a.csv",
            "input_ids,labels\n1 2,1 2\n",
            "tokenized",
            2,
            &["a.csv:2: field `input_ids` is a string, expected a list"],
        ),
    ]);
}

#[test]
fn conversations_that_do_not_fit() {
    all_told(&[
        ("a.jsonl", "{\"messages\": []}\n", "chat", 2, &["a.jsonl:1: field `messages` is empty"]),
        ("a.jsonl", "{\"messages\": \"hello\"}\n", "chat", 2, &["field `messages` is a string, expected a list"]),
        ("a.csv", "messages\n\"{\"\"role\"\": 1}\"\n", "chat", 2, &["a.csv:2: field `messages`", "not an object"]),
        (
            "a.jsonl",
            "{\"messages\": [\"hello\"]}\n",
            "chat",
            2,
            &["message 1: expected an object with `role` and `content`"],
        ),
        (
            "a.jsonl",
            "{\"messages\": [{\"from\": \"human\", \"value\": \"a\"}]}\n",
            "chat",
            2,
            &["message 1: `role` is missing", "from, value"],
        ),
        (
            "a.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": 3}]}\n",
            "chat",
            2,
            &["message 1: `content` is a number"],
        ),
        (
            "a.jsonl",
            "{\"messages\": [{\"role\": \"human\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n",
            "chat",
            2,
            &["a.jsonl:1: message 1: `role` is \"human\"", "did you mean \"user\"?"],
        ),
        (
            "a.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"asistant\", \"content\": \"b\"}]}\n",
            "chat",
            2,
            &["message 2: `role` is \"asistant\"", "did you mean \"assistant\"?"],
        ),
        (
            "a.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"gpt\", \"content\": \"b\"}]}\n",
            "chat",
            2,
            &["did you mean \"assistant\"?"],
        ),
        (
            "a.jsonl",
            "{\"messages\": [{\"role\": \"ipython\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n",
            "chat",
            2,
            &["\"ipython\"", "or one that the chat template names"],
        ),
        (
            "a.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n",
            "chat",
            2,
            &["no token of this sample is a label"],
        ),
        (
            "a.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}\n",
            "chat",
            2,
            &["part 1 of `content` is of type \"image_url\""],
        ),
        ("a.jsonl", "{\"conversations\": []}\n", "sharegpt", 2, &["field `conversations` is empty"]),
        (
            "a.jsonl",
            "{\"conversations\": [{\"from\": \"humam\", \"value\": \"a\"}]}\n",
            "sharegpt",
            2,
            &["turn 1: `from` is \"humam\"", "did you mean \"human\"?"],
        ),
        (
            "a.jsonl",
            "{\"conversations\": [{\"role\": \"user\", \"content\": \"a\"}]}\n",
            "sharegpt",
            2,
            &["`from` is missing", "`data.format = \"chat\"`"],
        ),
        (
            "a.jsonl",
            "{\"conversations\": [{\"from\": \"function_call\", \"value\": \"f(x)\"}]}\n",
            "sharegpt",
            2,
            &["should be JSON with `name` and `arguments`"],
        ),
        (
            "a.jsonl",
            "{\"conversations\": [{\"from\": \"function_call\", \"value\": \"{\\\"name\\\": \\\"f\\\", \\\"name\\\": \\\"g\\\"}\"}]}\n",
            "sharegpt",
            2,
            &["turn 1", "key `name` occurs twice"],
        ),
    ]);
}

#[test]
fn answers_that_say_nothing_and_keys_said_twice() {
    all_told(&[
        (
            "a.jsonl",
            "{\"instruction\": \"a\", \"output\": \"\"}\n",
            "alpaca",
            2,
            &["a.jsonl:1: field `output` is empty", "data.allow_empty_labels = true"],
        ),
        (
            "a.csv",
            "instruction,output\na,b\nc,\nd, \n",
            "alpaca",
            2,
            &["2 of 3 records cannot be used", "a.csv:3: field `output` is empty", "the same in line 4"],
        ),
        (
            "a.jsonl",
            "{\"prompt\": \"a\", \"completion\": \"\"}\n",
            "prompt_completion",
            2,
            &["field `completion` is empty"],
        ),
        ("a.jsonl", "{\"text\": \"\"}\n", "text", 2, &["field `text` is empty"]),
        (
            "a.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"\"}]}\n",
            "chat",
            2,
            &["message 2: the assistant's `content` is empty"],
        ),
        (
            "a.jsonl",
            "{\"conversations\": [{\"from\": \"human\", \"value\": \"a\"}, {\"from\": \"gpt\", \"value\": \"\"}]}\n",
            "sharegpt",
            2,
            &["the assistant's `content` is empty"],
        ),
        (
            "a.jsonl",
            "{\"instruction\": \"a\", \"output\": \"b\", \"output\": \"c\"}\n",
            "alpaca",
            2,
            &["a.jsonl:1: key `output` occurs twice"],
        ),
        (
            "a.json",
            "[{\"text\": \"a\"}, {\"text\": \"b\", \"text\": \"c\"}]",
            "text",
            2,
            &["a.json, record 2: key `text` occurs twice"],
        ),
        (
            "a.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\", \"content\": \"c\"}]}\n",
            "chat",
            2,
            &["key `messages[1].content` occurs twice"],
        ),
        (
            "a.csv",
            "messages\n\"[{\"\"role\"\": \"\"user\"\", \"\"role\"\": \"\"assistant\"\", \"\"content\"\": \"\"a\"\"}]\"\n",
            "chat",
            2,
            &["a.csv:2", "key `[0].role` occurs twice"],
        ),
    ]);
    let scratch = tempfile::tempdir().unwrap();
    let empty: Row = ("a.jsonl", "{\"instruction\": \"a\", \"output\": \"\"}\n", "alpaca", 0, &[]);
    told(scratch.path(), empty, &["data.allow_empty_labels=true"]);
}

#[test]
fn prompts_are_read_as_strictly() {
    let scratch = tempfile::tempdir().unwrap();
    for (text, needles) in [
        ("{\"messages\": [{\"role\": \"human\", \"content\": \"a\"}]}\n", &["a.jsonl:1", "did you mean \"user\"?"][..]),
        ("{\"prompt\": \"a\", \"prompt\": \"b\"}\n", &["a.jsonl:1: key `prompt` occurs twice"]),
        ("{\"question\": \"a\"}\n{\"prompt\": \"a\"}\n{}\n", &["2 of 3 records cannot", "a.jsonl:1", "a.jsonl:3"]),
    ] {
        let path = scratch.path().join("a.jsonl");
        std::fs::write(&path, text).unwrap();
        let mut command = asft(&["generate", "--max-new-tokens", "1", "--model", "tests/tiny/aligned", "--data"]);
        command.arg(&path);
        ends(command, 2, needles);
    }
}
