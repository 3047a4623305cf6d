//! Tables that fit the terminal: where they do not, columns are left out, the least important ones first.

use comfy_table::{CellAlignment, ContentArrangement, presets};

use super::{Error, in_a_line, line, look, print};

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    alignment: CellAlignment,
    /// Columns with a higher rank are left out first; those with 0 never are.
    rank: u8,
}

/// A column of text.
pub const fn text(title: &'static str, rank: u8) -> Column {
    Column {
        title,
        alignment: CellAlignment::Left,
        rank,
    }
}

/// A column of numbers.
pub const fn number(title: &'static str, rank: u8) -> Column {
    Column {
        title,
        alignment: CellAlignment::Right,
        rank,
    }
}

/// Rows of text under titles.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: &[Column]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, which has a cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| in_a_line(&cell).into_owned());
        self.rows.push(cells.collect());
    }

    /// Prints the columns that fit, and how many did not.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn print(&self) -> Result<(), Error> {
        let shown = self.fitting(look::columns());
        print(&self.text(&shown))?;
        let left_out: Vec<&str> = { self.columns.iter().enumerate() }
            .filter(|(position, _)| !shown.contains(position) && !self.is_empty(*position))
            .map(|(_, column)| column.title)
            .collect();
        if left_out.is_empty() {
            return Ok(());
        }
        line(&format!("(--wide also shows {})", left_out.join(", ")))
    }

    /// Whether a column has nothing to say.
    fn is_empty(&self, position: usize) -> bool {
        let mut cells = self.rows.iter().filter_map(|row| row.get(position));
        cells.all(|cell| cell.is_empty() || cell == "-")
    }

    /// Positions of the columns that fit into `width`.
    fn fitting(&self, width: Option<usize>) -> Vec<usize> {
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let Some(width) = width else {
            return shown;
        };
        // A column without a cell that says something costs nothing to leave out.
        shown.retain(|position| self.rank(*position) == 0 || !self.is_empty(*position));
        while self.width(&shown) > width {
            let least = { shown.iter().enumerate() }.max_by_key(|(_, it)| self.rank(**it));
            match least {
                Some((index, position)) if self.rank(*position) > 0 => _ = shown.remove(index),
                _ => break,
            }
        }
        shown
    }

    fn rank(&self, position: usize) -> u8 {
        self.columns.get(position).map_or(0, |column| column.rank)
    }

    /// How many terminal columns the widest line takes.
    fn width(&self, shown: &[usize]) -> usize {
        let text = self.text(shown);
        text.lines()
            .map(|line| line.chars().count())
            .max()
            .unwrap_or(0)
    }

    fn text(&self, shown: &[usize]) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        let columns = shown
            .iter()
            .filter_map(|position| self.columns.get(*position));
        table.set_header(columns.map(|column| column.title));
        for row in &self.rows {
            let cells = { shown.iter() }.filter_map(|position| row.get(*position));
            table.add_row(cells);
        }
        for (column, position) in table.column_iter_mut().zip(shown) {
            if let Some(known) = self.columns.get(*position) {
                column.set_cell_alignment(known.alignment);
            }
            column.set_padding((0, 2));
        }
        let lines = table.to_string();
        let lines: Vec<&str> = lines.lines().map(str::trim_end).collect();
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let columns = [
            text("ID", 0),
            text("PARENT", 2),
            number("SIZE", 1),
            text("LABEL", 3),
        ];
        let mut table = Table::new(&columns);
        table.row(["20261130T104000Z-F", "-", "1", ""].map(str::to_owned));
        table.row(["20261130T104000Z-D", "20261130T104000Z-F", "200", ""].map(str::to_owned));
        table
    }

    #[test]
    fn columns_that_do_not_fit_are_left_out_by_rank() {
        let table = table();
        assert_eq!(table.fitting(None), [0, 1, 2, 3]);
        // No row has a label.
        assert_eq!(table.fitting(Some(80)), [0, 1, 2]);
        assert_eq!(table.fitting(Some(30)), [0, 2]);
        assert_eq!(table.fitting(Some(5)), [0]);
    }

    #[test]
    fn numbers_stand_at_the_right_and_lines_end_with_text() {
        assert_eq!(
            table().text(&[0, 2]),
            "ID                  SIZE\n20261130T104000Z-F     1\n20261130T104000Z-D   200"
        );
    }

    #[test]
    fn a_cell_stays_in_its_line() {
        let mut table = Table::new(&[text("LABEL", 0)]);
        table.row(["a\nb\u{1b}[31m".to_owned()]);
        assert_eq!(table.text(&[0]), "LABEL\na\\u{a}b\\u{1b}[31m");
    }
}
