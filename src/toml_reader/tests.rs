use super::*;
use serde::Deserialize;
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// Every shape that a key may have.
#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Menu {
    place: String,
    #[serde(default)]
    seats: Vec<usize>,
    #[serde(default)]
    notes: BTreeMap<String, Json>,
    drink: Option<Drink>,
    #[serde(default)]
    dish: Vec<Dish>,
}

#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Drink {
    name: String,
    size: Option<f64>,
}

#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Dish {
    name: String,
    heat: Option<Heat>,
    #[serde(default)]
    part: Vec<Part>,
}

#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Heat {
    Mild,
    VeryHot,
}

#[derive(Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Part {
    grams: usize,
}

fn menu(text: &str) -> Result<Menu> {
    Document::parse(text, "menu.toml")?.read("menu", Mistakes::default())
}

#[test]
fn every_shape_is_read() {
    let text = r#"
place = "here"
seats = [1, 2]
notes = { a.b = 1, "c.d" = ["x", 2.5] }
[drink]
name = "tea"
size = 1
[[dish]]
name = "soup"
heat = "very_hot"
part = [{ grams = 3 }]
[[dish]]
name = "rice"
"#;
    let read = menu(text).unwrap();
    assert_eq!((read.place.as_str(), &read.seats[..]), ("here", &[1, 2][..]));
    assert_eq!(serde_json::to_string(&read.notes).unwrap(), r#"{"a":{"b":1},"c.d":["x",2.5]}"#);
    assert_eq!(read.drink, Some(Drink { name: "tea".into(), size: Some(1.0) }));
    let soup = Dish { name: "soup".into(), heat: Some(Heat::VeryHot), part: vec![Part { grams: 3 }] };
    assert_eq!(read.dish, [soup, Dish { name: "rice".into(), heat: None, part: vec![] }]);
}

#[test]
fn every_mistake_is_told_at_once_in_the_order_of_the_file() {
    let text = r#"plaec = "here"
seats = [1, "two"]
[drink]
nam = "tea"
[[dish]]
name = "soup"
heat = "mid"
part = [{ grams = 3 }, { gram = 4 }]
[[dish]]
nmae = "rice"
[[dish.part]]
grams = -1
"#;
    let message = menu(text).unwrap_err().to_string();
    let expected = [
        "the menu cannot be read, 11 problems:",
        "missing key `place` in menu.toml",
        "unknown key `plaec` in menu.toml:1; did you mean `place`?",
        "wrong type for `seats` in menu.toml:2: expected a list of whole numbers of 0 or more, found array [1, \"two\"]",
        "missing key `drink.name` in menu.toml:3",
        "unknown key `drink.nam` in menu.toml:4; did you mean `drink.name`?",
        "wrong value for `heat` in an item of `dish` in menu.toml:7: expected \"mild\" or \"very_hot\", found \"mid\"; did you mean \
         \"mild\"?",
        "missing key `grams` in an item of `part` in an item of `dish` in menu.toml:8",
        "unknown key `gram` in an item of `part` in an item of `dish` in menu.toml:8; did you mean `grams`?",
        "missing key `name` in an item of `dish` in menu.toml:9",
        "unknown key `nmae` in an item of `dish` in menu.toml:10; did you mean `name`?",
        "wrong type for `grams` in an item of `part` in an item of `dish` in menu.toml:12: expected a whole number of 0 or \
         more, found integer -1",
    ];
    assert_eq!(message.lines().map(str::trim).collect::<Vec<_>>(), expected, "{message}");
}

#[test]
fn what_is_set_on_top_replaces_what_the_file_says() {
    let mut document = Document::<Menu>::parse("place = 'here'\n[drink]\nname = 'tea'\n", "menu.toml").unwrap();
    let path = |key: &str| key.split('.').map(str::to_string).collect();
    document.set(path("drink"), "{ size = 2.0 }".parse().unwrap(), "--set drink");
    document.set(path("place"), "there".into(), "--set place");
    let read = document.read("menu", Mistakes::default()).unwrap();
    assert_eq!((read.place.as_str(), read.drink.unwrap().size), ("there", Some(2.0)));
    let mut document = Document::<Menu>::parse("place = 'here'\n", "menu.toml").unwrap();
    document.set(path("drink.siez"), 1.into(), "--set drink.siez=1");
    document.set(path("dish"), "[{ name = 'soup', haet = 'mild' }]".parse().unwrap(), "--set dish=...");
    let mut earlier = Mistakes::default();
    earlier.add("something else");
    let message = document.read("menu", earlier).unwrap_err().to_string();
    let expected = [
        "the menu cannot be read, 3 problems:",
        "something else",
        "unknown key `drink.siez` in --set drink.siez=1; did you mean `drink.size`?",
        "unknown key `haet` in an item of `dish` in --set dish=...; did you mean `heat`?",
    ];
    assert_eq!(message.lines().map(str::trim).collect::<Vec<_>>(), expected, "{message}");
}

#[test]
fn a_file_that_is_not_there_or_not_toml_is_named() {
    let message = |error: anyhow::Error| error.to_string();
    let missing = message(load::<Menu>(Path::new("no/such.toml"), "menu").unwrap_err());
    assert!(missing.starts_with("cannot read menu no/such.toml: "), "{missing}");
    let broken = message(menu("place = 'here'\nseats = \n").unwrap_err());
    assert!(broken.starts_with("menu.toml:2 is not valid TOML: "), "{broken}");
}
