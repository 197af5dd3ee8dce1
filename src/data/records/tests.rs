use super::*;
use serde_json::{Value, json};

fn read_as(name: &str, bytes: &[u8]) -> Result<Vec<Record>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    read(&path)
}

#[track_caller]
fn refusal(name: &str, bytes: &[u8]) -> String {
    let error = read_as(name, bytes).unwrap_err();
    assert_eq!(crate::error::exit_code(&error), 2);
    error.to_string()
}

fn values(records: &[Record]) -> Vec<Value> {
    records.iter().map(|record| Value::Object(record.fields.clone())).collect()
}

#[test]
fn json_lines_and_arrays() {
    let records = read_as("data.json", b"\xef\xbb\xbf\n{\"a\": \"x\"}\r\n  \n{\"a\": null}").unwrap();
    assert_eq!(records.iter().map(|r| r.place).collect::<Vec<_>>(), [Place::Line(2), Place::Line(4)]);
    let records = read_as("data.jsonl", b" \n[{\"a\": \"x\"},\n {}]").unwrap();
    assert_eq!(records[1].place, Place::Item(2));
    assert_eq!(values(&records), [json!({"a": "x"}), json!({})]);
}

#[test]
fn bad_json_names_its_line() {
    let message = |bytes| refusal("data.json", bytes);
    assert!(message(b"{\"a\": 1}\n\n{\"a\": \n").contains("data.json:3: malformed JSON at column"));
    assert!(message(b"[{\"a\": 1},\n{\"a\" 1}]").contains("data.json:2: malformed JSON"));
    assert!(message(b"{\"a\": 1}\n7\n").contains("data.json:2: expected a JSON object, got a number"));
    assert!(message(b"[{}, \"x\"]").contains("record 2: expected a JSON object, got a string"));
    assert!(message(b"{\"a\": 1}\n{\"a\": \"\xff\"}").contains("data.json:2: not UTF-8"));
    for empty in [&b""[..], b"\n \n", b"[]"] {
        assert!(message(empty).contains("is empty"));
    }
    assert!(read(Path::new("/no/such/file")).unwrap_err().to_string().contains("does not exist"));
}

#[test]
fn what_does_not_end_is_refused_where_it_begins() {
    // A quote is missing in line 2; in the end there are as many quotes as there should be.
    let text = "[{\"a\": \"b\"},\n{\"a\": \"b},\n{\"a\": \"b\"},\n{\"a\": b\"}]";
    let message = refusal("data.json", text.as_bytes());
    assert!(message.contains("data.json:2: malformed JSON: the line ends within a string"), "{message}");
    let long = "x".repeat(5 << 20);
    for text in [format!("[{{}},\n\n{{\"a\": \"{long}"), format!("{{}}\n\n{long}")] {
        let message = refusal("data.json", text.as_bytes());
        assert!(message.contains("data.json:3: the record that begins here has more than 4 MiB"), "{message:.200}");
    }
    for long in [&long, &"xyz\n".repeat(2 << 20)] {
        let message = refusal("data.csv", format!("a,b\n1,2\n3,\"{long}").as_bytes());
        assert!(message.contains("data.csv:3: the record that begins here has more than 4 MiB"), "{message:.200}");
    }
    let message = refusal("data.csv", format!("a,\"{long}\"\n1,2\n").as_bytes());
    assert!(message.contains("data.csv:1: the record that begins here has more than 4 MiB"), "{message:.200}");
    assert!(read_as("data.csv", format!("a\n\"{}\"\n", &long[..3 << 20]).as_bytes()).is_ok());
}

#[test]
fn a_key_that_occurs_twice_is_refused() {
    let twice = r#"{"a": 1, "b": [{"c": null}, {"d": {"c": 1, "c": 1}}]}"#;
    let message = refusal("data.jsonl", format!("{{}}\n{twice}\n{{\"a\": 1, \"a\": 1}}").as_bytes());
    for part in ["2 of 3 records cannot", "data.jsonl:2: key `b[1].d.c` occurs twice", "data.jsonl:3: key `a` occurs"] {
        assert!(message.contains(part), "{message}");
    }
    let message = refusal("data.json", format!("[{{}}, {twice}]").as_bytes());
    assert!(message.contains("data.json, record 2: key `b[1].d.c` occurs twice"), "{message}");
    assert!(parse(r#"[{"role": "user", "role": "system"}]"#).unwrap_err().to_string().contains("key `[0].role`"));
}

#[test]
fn values_are_those_of_serde_json() {
    let text =
        r#"{"a": [true, null, -3, 18446744073709551615, 1e400, 0.1, "\u00e9\n", "x"], "": {}, "b": -0.0, "c": 1E5}"#;
    let text = text.replace("1e400", "1e300");
    assert_eq!(parse(&text).unwrap(), serde_json::from_str::<Value>(&text).unwrap());
    for text in ["1e400", "{", "[1,]", "1 2", "\"\\ud800\"", &"[".repeat(1000)] {
        let expected = serde_json::from_str::<Value>(text).unwrap_err().to_string();
        assert_eq!(parse(text).unwrap_err().to_string(), expected);
    }
}

#[test]
fn tables_are_read_by_their_header() {
    let text = "\u{feff}question,answer\r\n\r\n\"a, \"\"b\"\"\nc\",d\r\n  e ,\r\n\r\n5\" pipe,\"f\n\ng\"\n";
    let records = read_as("data.csv", text.as_bytes()).unwrap();
    let expected = [("a, \"b\"\nc", "d"), ("  e ", ""), ("5\" pipe", "f\n\ng")];
    assert_eq!(values(&records), expected.map(|(question, answer)| json!({"question": question, "answer": answer})));
    assert_eq!(records.iter().map(|r| r.place).collect::<Vec<_>>(), [3, 5, 7].map(Place::Line));
    let records = read_as("data.TSV", b"a\tb\nx, y\t\"1\t2\"").unwrap();
    assert_eq!(values(&records), [json!({"a": "x, y", "b": "1\t2"})]);
}

#[test]
fn rows_are_whole_however_the_table_is_read() {
    // Rows of up to 200 bytes and many lines: some lie across every piece that is read.
    let (mut text, mut expected, mut line) = ("a,b\r\n".to_string(), vec![], 2);
    for i in 0..5000 {
        let field = "é\n\"x\"".repeat(i % 40);
        text.push_str(&format!("{i},\"{}\"\r\n", field.replace('"', "\"\"")));
        expected.push((json!({"a": i.to_string(), "b": field}), Place::Line(line)));
        line += 1 + i % 40;
    }
    let records = read_as("data.csv", text.as_bytes()).unwrap();
    let got = records.into_iter().map(|record| (Value::Object(record.fields), record.place));
    assert!(got.eq(expected));
}

#[test]
fn bad_tables_name_their_line() {
    let message = |text: &str| refusal("data.csv", text.as_bytes());
    let ragged = message("a,b\n\"1\n\",2\n\n3\n4,5\n");
    assert!(ragged.contains("data.csv:5: the row that begins here has 1 fields, the header has 2 (a, b)"), "{ragged}");
    assert!(message("a,b\r\n1,2\r\n1,2,3\r\n").contains("data.csv:3: the row that begins here has 3 fields"));
    assert!(message("a,b\n1,2\n3,\"4\n5,6\n").contains("data.csv:3: a quote that opens in the row"));
    assert!(message("a,b\n1,2\n\"3,4\n5,6\n").contains("data.csv:3: the row that begins here has 1 fields"));
    assert!(message("a,b,a\n1,2,3\n").contains("data.csv:1: two columns are named \"a\""));
    assert!(message("a,b\n").contains("is empty"));
    assert!(refusal("data.tsv", b"a\tb\n1\t\xff\n").contains("data.tsv:2: not UTF-8"));
    assert!(read_as("data.csv", b"a,b\n1,5\" pipe\n").is_ok());
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parquet").join(name)
}

fn expected_rows() -> Vec<Value> {
    let text = std::fs::read_to_string(fixture("records.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["records"].as_array().unwrap().clone()
}

#[test]
fn parquet_reads_alike_however_it_is_written() {
    // Made by tests/fixtures/make/parquet.py.
    for name in ["none", "snappy", "gzip", "zstd", "lz4", "plain", "v2_pages", "deltas", "old_lists", "row_groups"] {
        let records = read(&fixture(&format!("{name}.parquet"))).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(values(&records), expected_rows(), "{name}");
        assert_eq!(records[3].place, Place::Row(4));
    }
}

#[test]
fn pandas_frames_are_read() {
    let rows = values(&read(&fixture("pandas.parquet")).unwrap());
    for (row, mut expected) in rows.into_iter().zip(expected_rows()) {
        // An integer column with gaps becomes one of floats in pandas.
        for name in ["label", "big"] {
            expected[name] = expected[name].as_f64().map_or(Value::Null, Value::from);
        }
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(row[name], *value, "{name}");
        }
        assert!(row["when"].as_str().unwrap().starts_with("2024-02-29 12:30"), "{}", row["when"]);
    }
    let column = |name: &str| -> Vec<Value> {
        let rows = values(&read(&fixture("pandas.parquet")).unwrap());
        rows.iter().map(|row| row[name].clone()).collect()
    };
    assert_eq!(column("price"), [json!(null), json!(1.5), json!(null), json!(null)]);
    assert_eq!(column("picture"), [json!(null), json!("text"), json!(null), json!("")]);
}

#[test]
fn parquet_is_known_by_its_first_bytes() {
    let bytes = std::fs::read(fixture("snappy.parquet")).unwrap();
    assert_eq!(values(&read_as("0000", &bytes).unwrap()), expected_rows());
}

#[test]
fn bad_parquet_is_refused() {
    let bytes = std::fs::read(fixture("snappy.parquet")).unwrap();
    for name in ["data.parquet", "data"] {
        assert!(refusal(name, &bytes[..bytes.len() / 2]).contains("not a readable Parquet file"));
    }
    assert!(refusal("data.parquet", b"{\"a\": 1}\n").contains("not a readable Parquet file"));
    let message = read(&fixture("brotli.parquet")).unwrap_err().to_string();
    assert!(message.contains("brotli"), "{message}");
    // Damage anywhere is an error or goes unnoticed; it is never a crash.
    for index in (0..bytes.len()).step_by(31) {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[index] ^= flip;
            let _either = read_as("data.parquet", &damaged);
        }
    }
}

#[test]
fn arrow_is_refused_with_what_to_do() {
    let stream = [&[0xff; 4][..], &[0; 12]].concat();
    let (stream_reader, file_reader) = ("datasets.Dataset.from_file(", "pandas.read_feather(");
    for (name, bytes, reader) in [
        ("a.arrow", b"" as &[u8], stream_reader),
        ("b.arrow", b"ARROW1\0\0", file_reader),
        ("a.feather", b"FEA1", file_reader),
        ("a", b"ARROW1\0\0", file_reader),
        ("a.bin", &stream, stream_reader),
    ] {
        let message = refusal(name, bytes);
        assert!(message.contains(reader), "{message}");
        assert!(message.contains(&format!("{name}: Arrow files are not read")), "{message}");
        assert!(message.contains(&format!("{name}\").to_parquet(")), "{message}");
    }
}
