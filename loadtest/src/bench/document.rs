//! A report as headings, sentences and tables: one content for the terminal, the HTML page and the Markdown page.

use super::{about::About, chart::escape, html, markdown, summary::Rows};
use crate::report::table;

/// One part of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// Opens a section.
    Heading(String),
    /// A sentence or several.
    Paragraph(String),
    /// Items; one that begins with a star is a warning.
    List(Vec<String>),
    /// A table.
    Table(Rows),
    /// Figures that one looks for first, each with what it is.
    Cards(Vec<(String, String)>),
}

/// A whole report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What was measured.
    pub subject: String,
    /// The parts, in order.
    pub blocks: Vec<Block>,
}

impl Document {
    /// The page for people: one file without anything from elsewhere.
    pub fn html(&self, about: &About) -> String {
        let mut page = html::head(&format!("Floodway benchmark: {}", self.subject));
        page += &html::paragraph("quiet", &html::subtitle(about));
        for block in &self.blocks {
            page += &match block {
                Block::Heading(text) => format!("<h2>{}</h2>\n", escape(text)),
                Block::Paragraph(text) => html::paragraph("", text),
                Block::List(items) => html::list(items),
                Block::Table(rows) => html::table(rows),
                Block::Cards(cards) => html::cards(cards),
            };
        }
        page + &html::facts(about) + html::FOOT
    }

    /// The page for the repository; `json` is how it names the file with all figures.
    pub fn markdown(&self, about: &About, json: &str) -> String {
        let mut page = markdown::head(about, json) + "\n";
        for block in &self.blocks {
            page += &match block {
                Block::Heading(text) => format!("## {text}\n\n"),
                Block::Paragraph(text) => format!("{text}\n\n"),
                Block::List(items) => markdown::list(items) + "\n",
                Block::Table(rows) => markdown::table(rows) + "\n",
                // They are in the tables, too.
                Block::Cards(_) => String::new(),
            };
        }
        page.truncate(page.trim_end().len());
        page + "\n" + &markdown::facts(about)
    }

    /// The tables and the warnings, for the terminal.
    pub fn terminal(&self) -> String {
        let mut text = String::from("\n");
        for block in &self.blocks {
            match block {
                Block::Heading(heading) => text += &format!("{heading}\n"),
                Block::Table(Rows { header, rows }) => text += &format!("{}\n", table(header, rows)),
                Block::List(items) => {
                    for item in items.iter().filter(|item| item.starts_with('*')) {
                        text += &format!("{item}\n");
                    }
                }
                Block::Paragraph(_) | Block::Cards(_) => {}
            }
        }
        text
    }
}
