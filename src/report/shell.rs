//! What the HTML pages have in common: one file without scripts that needs no other, with one style sheet for light, dark, telephone and
//! paper.

use super::chart::escape;

const STYLE: &str = include_str!("report.css");

/// A page. `title` and `about`, what stands below it, are text; `links` and `body` are HTML.
pub fn page(title: &str, about: &str, links: &str, body: &str) -> String {
    let (title, about) = (escape(title), escape(about));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light \
         dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header><h1>{title}</h1><p>{about}</p>{links}</header>\n\
         {body}</body>\n</html>\n"
    )
}

/// The numbers that a reader looks for first; those without a value are left out.
pub fn figures<'a>(all: impl IntoIterator<Item = (&'a str, Option<String>)>) -> String {
    let figure = |(name, value): (&str, Option<String>)| {
        let value = escape(&value?);
        Some(format!("<div><dt>{name}</dt><dd>{value}</dd></div>"))
    };
    format!("<dl class=\"figures\">{}</dl>\n", all.into_iter().filter_map(figure).collect::<String>())
}
