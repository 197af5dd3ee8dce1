use super::*;

fn options(text: &str) -> Result<CompareOptions> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("compare.toml");
    std::fs::write(&path, format!("config = 'c'\nsuite = 's'\ndir = 'd'\n{text}")).unwrap();
    CompareOptions::load(&path)
}

#[test]
fn mistakes_are_named() {
    for (text, words) in [
        ("", "missing key `method` in "),
        ("method = []", "no [[method]]"),
        ("[[method]]\nname = 'a'\n[[method]]\nname = 'a'", "two methods are called"),
        ("[[method]]\nname = 'a'\nsweep = { 'asft.lambda' = 3 }", "`sweep.asft.lambda` in an item of `method` in "),
        ("[[method]]\nname = 'a'\nsweep = { asft.lambda = [] }", "`asft.lambda` should be a list"),
        ("[[method]]\nname = 'a'\nproject = { of = 'b', threshold = [0.5] }", "no method that trains"),
        (
            "[[method]]\nname = 'a'\ncut = { of = 'b', to = ['rows'] }",
            "cuts down \"b\", which is no method that trains",
        ),
        ("[[method]]\nname = 'a'\n[[method]]\nname = 'b'\ncut = { of = 'a', to = [] }", "`cut.to` is an empty list"),
        ("[[method]]\nname = 'a'\n[[method]]\nname = 'b'\ncut = { of = 'a', to = ['rows'], energy = 0 }", "cut.energy"),
        (
            "[[method]]\nname = 'a'\n[[method]]\nname = 'b'\nset = { a = 1 }\ncut = { of = 'a', to = ['rows'] }",
            "only cuts down",
        ),
        ("[[method]]\nname = 'a'\nextrapolate = { rank = 0, alpha = 0.5 }", "`extrapolate.rank` should be at least 1"),
        (
            "[[method]]\nname = 'a'\nextrapolate = { rank = 6, alpha = nan }",
            "`extrapolate.alpha` should be a finite number",
        ),
        ("[[attack]]\nname = 'x'\n[[attack]]\nname = 'x'\n[[method]]\nname = 'a'", "two attacks are called \"x\""),
        ("seeds = []\n[[method]]\nname = 'a'", "`seeds` is empty"),
        (
            "sweep = { a = [1, 2] }\n[[method]]\nname = 'a'\n[figure]\nx = 't'\ny = 'h'\nlabels = ['1 %']",
            "figure.labels",
        ),
        ("[[method]]\nname = 'a'\nsett = {}", "did you mean `set`?"),
        ("[[method]]\nname = 'a'\n[select]\ntask = 't'\nharm = 'h'\nbaseline = 'x'", "select.baseline is \"x\""),
        ("[[method]]\nname = 'a'\n[paired]\nagainst = 'x'", "paired.against is \"x\""),
        ("[[method]]\nname = 'a'\n[paired]\nagainst = 'a'\nmargin = 0", "paired.margin"),
        ("[[method]]\nname = 'a'\n[paired]\nagainst = 'a'\ncluster_pattern = 'x'", "`paired.cluster_pattern`"),
        ("[[method]]\nname = 'a'\nsweep = { a = [1, 2] }\n[paired]\nagainst = 'a'", "has several settings"),
    ] {
        let error = format!("{:#}", options(text).unwrap_err());
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn every_mistake_is_told_at_once() {
    let lines = |text: &str| -> Vec<String> {
        let error = options(text).unwrap_err().to_string();
        error.lines().map(|line| line.split("compare.toml").last().unwrap().to_string()).collect()
    };
    let text = "sedes = [1]\nbatch_size = '64'\nsweep = { data.train = 'a' }\n[[method]]\nname = 'a'\nswep = {}\nproject = { \
                of = 'b', treshold = [0.5] }\n[select]\ntask = 't'\nharm = 'h'\n";
    assert_eq!(
        lines(text),
        [
            "the comparison cannot be read, 7 problems:",
            ":4; did you mean `seeds`?",
            ":5: expected a whole number of 0 or more, found string \"64\"",
            ":6: expected a list of values or a table, found string \"a\"",
            ":9; did you mean `sweep`?",
            ":10",
            ":10; did you mean `project.threshold`?",
            ":11",
        ]
    );
    let text = "seeds = []\nbatch_size = 0\n[[method]]\nname = ''\nproject = { of = 'b', threshold = [] }";
    assert_eq!(
        lines(text),
        [
            "the comparison cannot be used, 5 problems:",
            ": `seeds` is empty",
            ": `batch_size` should be at least 1",
            ": [[method]] 1 has an empty `name`",
            ": method \"\" projects \"b\", which is no method that trains",
            ": method \"\": `threshold` is an empty list",
        ]
    );
}

#[test]
fn evaluations_have_to_be_there() {
    let text = "[[method]]\nname = 'a'\n[figure]\nx = 'task'\ny = 'harm'";
    let options = options(text).unwrap();
    options.check_names(&["harm".into(), "task".into()]).unwrap();
    assert!(options.check_names(&["harm".into()]).unwrap_err().to_string().contains("figure.x"));
    let neither = options.check_names(&[]).unwrap_err().to_string();
    assert!(neither.contains("figure.x") && neither.contains("figure.y"), "{neither}");
}

#[test]
fn the_worst_case_may_be_of_a_value_or_of_a_title_with_a_colon() {
    let options = |harm: &str| options(&format!("[[method]]\nname = 'a'\n[worst]\nharm = '{harm}'")).unwrap();
    let titles = ["task".to_string(), "harm: asked".to_string()];
    for known in ["task", "harm: asked", "harm: asked: told", "task: perplexity"] {
        options(known).check_names(&titles).unwrap();
    }
    for (unknown, told) in [("harm", "is \"harm\""), ("tasks: told", "is \"tasks: told\"")] {
        let error = options(unknown).check_names(&titles).unwrap_err().to_string();
        assert!(error.contains("worst.harm") && error.contains(told), "{error}");
    }
}

#[test]
fn dotted_keys_may_be_quoted_or_not() {
    let table: Table = toml::from_str("\"a.b\" = 1\n[c]\nd.e = [2]").unwrap();
    let keys: Vec<String> = flatten(&table).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["a.b", "c.d.e"]);
}
