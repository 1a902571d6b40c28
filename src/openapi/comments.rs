//! The comments of the proto, by the place that they describe.

use std::collections::HashMap;

use prost_reflect::DescriptorPool;

pub(super) struct Comments(HashMap<(String, Vec<i32>), String>);

impl Comments {
    pub(super) fn of(pool: &DescriptorPool) -> Self {
        let mut comments = HashMap::new();
        for file in pool.files() {
            let proto = file.file_descriptor_proto();
            for place in proto.source_code_info.iter().flat_map(|info| &info.location) {
                if place.leading_comments.is_some() {
                    let text = markdown(place.leading_comments());
                    comments.insert((file.name().to_owned(), place.path.clone()), text);
                }
            }
        }
        Self(comments)
    }

    /// Empty: there is none.
    pub(super) fn text(&self, file: &str, path: &[i32]) -> &str {
        self.0.get(&(file.to_owned(), path.to_vec())).map_or("", String::as_str)
    }
}

/// Each line of a comment begins with the space that follows `//`.
fn markdown(comment: &str) -> String {
    let lines: Vec<_> =
        comment.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
    lines.join("\n").trim().to_owned()
}

/// The first sentence of a text, without its full stop.
pub(super) fn summary(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or_default().replace('\n', " ");
    paragraph.split(". ").next().unwrap_or_default().trim_end_matches('.').to_owned()
}
