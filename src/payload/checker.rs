//! One body, as it comes.

use std::sync::Arc;

use super::form::Form;
use super::json::Json;
use super::multipart::{Multipart, boundary};
use super::{Checks, Format, Found, Measure};

/// Checks one body.
#[derive(Debug)]
pub struct Checker {
    checks: Arc<Checks>,
    found: Found,
    reader: Reader,
    is_empty: bool,
}

#[derive(Debug)]
enum Reader {
    Json(Box<Json>),
    Form(Form),
    Multipart(Multipart),
    /// A file by itself, of so many bytes so far.
    File(u64),
    /// Nothing can be told of it.
    Lost,
}

impl Checker {
    /// Checks a body whose call says this of it.
    #[must_use]
    pub fn new(checks: Arc<Checks>, content_type: Option<&[u8]>) -> Self {
        let reader = match checks.format {
            Format::Json => Reader::Json(Box::new(Json::new())),
            Format::Form => Reader::Form(Form::new(content_type)),
            Format::File => match content_type.and_then(boundary) {
                Some(Ok(boundary)) => Reader::Multipart(Multipart::new(&boundary)),
                Some(Err(())) => Reader::Lost,
                None => Reader::File(0),
            },
        };
        Self {
            checks,
            found: Found::default(),
            reader,
            is_empty: true,
        }
    }

    /// What is checked.
    #[must_use]
    pub fn checks(&self) -> &Arc<Checks> {
        &self.checks
    }

    /// Takes the query of the call, before its body: of a form, its fields count too.
    pub fn query(&mut self, query: &[u8]) {
        let Reader::Form(form) = &mut self.reader else {
            return;
        };
        if !query.is_empty() {
            self.is_empty = false;
            self.found.is_malformed |= !form.query(&self.checks, &mut self.found, query);
        }
    }

    /// Takes what has come.
    pub fn push(&mut self, piece: &[u8]) {
        if piece.is_empty() || self.found.is_malformed {
            return;
        }
        self.is_empty = false;
        let (checks, found) = (&*self.checks, &mut self.found);
        let is_good = match &mut self.reader {
            Reader::Json(json) => json.push(checks, found, piece),
            Reader::Form(form) => form.push(checks, found, piece),
            Reader::Multipart(parts) => parts.push(checks, found, piece),
            Reader::File(bytes) => {
                *bytes += piece.len() as u64;
                for (nth, rule) in checks.rules.iter().enumerate() {
                    if rule.measure == Measure::File {
                        found.judge(checks, nth, *bytes, true);
                    }
                }
                true
            }
            Reader::Lost => false,
        };
        found.is_malformed |= !is_good;
    }

    /// The end has come. A body without a byte carries nothing.
    pub fn finish(&mut self) {
        if self.is_empty || self.found.is_malformed {
            return;
        }
        let (checks, found) = (&*self.checks, &mut self.found);
        let is_good = match &mut self.reader {
            Reader::Json(json) => json.finish(checks, found),
            Reader::Form(form) => form.finish(checks, found),
            Reader::Multipart(parts) => parts.finish(),
            Reader::File(_) => true,
            Reader::Lost => false,
        };
        found.is_malformed |= !is_good;
    }

    /// What has been found so far.
    #[must_use]
    pub fn found(&self) -> &Found {
        &self.found
    }
}

impl Checks {
    /// Whether the fields of a query count with those of the body.
    #[must_use]
    pub fn reads_query(&self) -> bool {
        self.format == Format::Form
    }

    /// Checks a body that is here as a whole.
    #[must_use]
    pub fn body(self: &Arc<Self>, content_type: Option<&[u8]>, body: &[u8]) -> Found {
        self.fields(b"", content_type, body)
    }

    /// The same, after this query.
    #[must_use]
    pub fn fields(
        self: &Arc<Self>,
        query: &[u8],
        content_type: Option<&[u8]>,
        body: &[u8],
    ) -> Found {
        let mut checker = Checker::new(self.clone(), content_type);
        checker.query(query);
        checker.push(body);
        checker.finish();
        checker.found
    }
}
