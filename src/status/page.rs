//! A status as one page of HTML that needs nothing else: no server, no other file, no network.

/// The page, with a place for each of the others.
const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The page of a document, which is JSON.
pub fn html(json: &str) -> String {
    let page = PAGE.replacen("/*STYLE*/", STYLE, 1);
    let page = page.replacen("/*SCRIPT*/", SCRIPT, 1);
    page.replacen("/*DATA*/", &in_script(json), 1)
}

/// JSON that no text in it can end the element of: names come from servers and stores that others can write to.
fn in_script(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_ends_the_data() {
        let json = in_script("{\"label\":\"</script><script>alert(1)</script>\u{2028}\"}");
        assert!(!json.contains('<'), "{json}");
        let page = html(&json);
        assert!(page.contains(&json));
        for place in ["/*STYLE*/", "/*SCRIPT*/", "/*DATA*/"] {
            assert!(!page.contains(place), "{place}");
        }
    }
}
