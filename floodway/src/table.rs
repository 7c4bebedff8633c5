//! Tables on a terminal: columns as wide as their widest cell, numbers to the right.

/// A table as text, a line per row, without spaces at the ends of lines.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let headings: Vec<String> = headings.iter().map(|heading| (*heading).to_owned()).collect();
    let lines: Vec<&Vec<String>> = std::iter::once(&headings).chain(rows).collect();
    let column = |index: usize| lines.iter().filter_map(move |line| line.get(index));
    let widths: Vec<usize> = (0..headings.len())
        .map(|index| column(index).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let is_number =
        |cell: &String| cell.chars().next().is_none_or(|first| first.is_ascii_digit() || first == '≥');
    let to_the_right: Vec<bool> = (0..headings.len())
        .map(|index| {
            rows.iter()
                .filter_map(|row| row.get(index))
                .all(|cell| cell == "–" || (is_number(cell) && cell.len() < 16))
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).zip(&to_the_right).map(|((cell, &width), &right)| {
            if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_stand_to_the_right() {
        let rows = [
            vec!["0".to_owned(), "12,345".to_owned(), "b".to_owned()],
            vec!["11".to_owned(), "–".to_owned(), "cc".to_owned()],
        ];
        let text = table(&["shard", "pending", "owner"], &rows);
        assert_eq!(text, "shard  pending  owner\n    0   12,345  b\n   11        –  cc\n");
        assert_eq!(table(&["a", "b"], &[]), "a  b\n");
    }
}
