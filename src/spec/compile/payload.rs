//! `[[payload]]`, and what routes say of it → [`Payloads`].

use super::{Compiler, WITH_BODY};
use crate::payload::place::{Place, Step};
use crate::payload::{MAX_RULES, Measure, Most};
use crate::spec::check::suggestion;
use crate::spec::payload::{PayloadFigure, PayloadLimit, Payloads, Uses};
use crate::spec::written::{WrittenPayload, WrittenRoute};
use crate::spec::{Edition, EditionId};

impl Compiler<'_> {
    pub(super) fn payloads(&mut self, editions: &[Edition]) -> Payloads {
        let written = self.written;
        let limits = written
            .payloads
            .iter()
            .map(|payload| self.payload(payload, editions))
            .collect();
        let uses = written
            .routes
            .iter()
            .map(|route| self.uses(route))
            .collect();
        self.mistakes.within(String::new());
        let validate = written.validate.unwrap_or_default();
        Payloads::new(limits, uses, validate, editions.len())
    }

    fn payload(&mut self, written: &WrittenPayload, editions: &[Edition]) -> PayloadLimit {
        let name = &written.name.value;
        self.mistakes.within(format!("payload `{name}`"));
        if written.measure.is_none() && !self.mistakes.may_have_lost(name) {
            let known = self.written.payloads.iter().map(|other| &*other.name.value);
            let near = suggestion(name, known.filter(|other| *other != name));
            let message = format!(
                "nothing says what is measured; write measure = \"bytes\", \"characters\", \"entries\", \"form\" or \"file\", or the name of an earlier file's payload; {near}"
            );
            self.mistakes.add(written.name.at, &**name, message);
        }
        let measure = written.measure.unwrap_or(Measure::Bytes);
        let is_used = !written.paths.is_empty() || self.written.used_payloads.contains(name);
        if !is_used && !self.mistakes.has_lost() {
            let message = format!(
                "no route names it; write payload = {{ {name} = \"…\" }} in a route, or remove it"
            );
            self.mistakes.add(written.name.at, &**name, message);
        }
        if written.editions.is_empty() && !self.mistakes.has_lost() {
            let message = "no edition has a figure; write e.g. v3 = { max = 64 }";
            self.mistakes.add(written.name.at, &**name, message);
        }
        for place in written
            .paths
            .iter()
            .filter(|place| parameter(&place.value).is_none())
        {
            let message = "what is looked for in every route is a parameter of its path; write e.g. \"{username}\"";
            self.mistakes
                .add(place.at, place.value.to_string(), message);
        }
        for figure in written.editions.values() {
            let counts = matches!(measure, Measure::Characters | Measure::Entries);
            let message = match figure.most {
                Some(Some(Most::AsMessage)) if measure != Measure::Bytes => {
                    "only bytes can be as many as the message's"
                }
                Some(Some(_)) if counts && figure.is_size => {
                    "characters and entries are a whole number, e.g. 128"
                }
                Some(Some(_)) if !counts && !figure.is_size => {
                    "bytes are a size, e.g. \"3KiB\" or \"2048B\""
                }
                _ => continue,
            };
            self.mistakes.add(figure.at, &*figure.text, message);
        }
        let figure = |at: usize| {
            let entry = written.editions.get(&*editions.get(at)?.name)?;
            Some(PayloadFigure {
                most: entry.most?,
                from: EditionId(at),
                sources: entry.sources.iter().map(|s| s.as_str().into()).collect(),
            })
        };
        // As with limits: one that prints none has that of the newest that does.
        let newest = (0..editions.len()).rev().find_map(figure);
        let figures = (0..editions.len()).map(|at| figure(at).or_else(|| newest.clone()));
        PayloadLimit {
            name: name.as_str().into(),
            title: written.title.as_str().into(),
            measure,
            allow: written.allow.clone(),
            types: written
                .types
                .iter()
                .map(|kind| kind.as_str().into())
                .collect(),
            answer: written.answer,
            validate: written.validate,
            figures: figures.collect(),
        }
    }

    fn uses(&mut self, route: &WrittenRoute) -> Uses {
        self.mistakes
            .within(format!("route `{}`", route.name.value));
        let mut uses = Uses {
            places: Vec::new(),
            kind: route
                .message_type
                .as_ref()
                .map_or_else(Box::default, |kind| kind.value.clone()),
        };
        let payloads = &self.written.payloads;
        for written in &route.payload {
            let name = &written.limit.value;
            let Some(nth) = payloads.iter().position(|known| known.name.value == *name) else {
                if !self.mistakes.may_have_lost(name) {
                    let near = suggestion(name, payloads.iter().map(|known| &*known.name.value));
                    self.mistakes.add(
                        written.limit.at,
                        &**name,
                        format!("unknown payload; {near}"),
                    );
                }
                continue;
            };
            let limit = &payloads[nth];
            for place in &written.places {
                if let Some(message) = misplaced(route, limit, &place.value) {
                    self.mistakes
                        .add(place.at, place.value.to_string(), message);
                }
                uses.places.push((nth, place.value.clone()));
            }
            let as_message = |figure: &crate::spec::written::WrittenMost| {
                figure.most == Some(Some(Most::AsMessage))
            };
            let waits = !limit.types.is_empty() || limit.editions.values().any(as_message);
            if waits && route.message_type.is_none() {
                let message = "it goes by the message's type, and nothing says where that is; write e.g. message_type = \"type\" in the route";
                self.mistakes.add(written.limit.at, &**name, message);
            }
        }
        for (nth, limit) in payloads.iter().enumerate() {
            let places = limit.paths.iter().map(|place| &place.value);
            // A place of the route's own says how its parameter is read.
            let own = |name: &str| {
                let mut own = uses.places.iter();
                own.any(|(other, place)| *other == nth && parameter(place) == Some(name))
            };
            let here: Vec<_> = places
                .filter(|place| misplaced(route, limit, place).is_none())
                .filter(|place| parameter(place).is_some_and(|name| !own(name)))
                .map(|place| (nth, place.clone()))
                .collect();
            uses.places.extend(here);
        }
        let measures = |measure: Measure| {
            let mut of_body = uses
                .places
                .iter()
                .filter(|(_, place)| parameter(place).is_none());
            of_body.any(|(nth, _)| payloads[*nth].measure == Some(measure))
        };
        let other = uses
            .places
            .iter()
            .any(|(_, place)| matches!(place, Place::Value(_) | Place::Names(_)));
        let formats = [measures(Measure::Form), measures(Measure::File), other];
        if let Some(first) = route.payload.first() {
            if formats.iter().filter(|is_one| **is_one).count() > 1 {
                let message = "a body is JSON, a form or a file; what is measured of one cannot be measured of another";
                self.mistakes.add(first.limit.at, "payload", message);
            }
            if uses.places.len() > MAX_RULES {
                let message = format!("a route has {MAX_RULES} places at most");
                self.mistakes.add(first.limit.at, "payload", message);
            }
        }
        uses
    }
}

/// The parameter of a path that a place is.
fn parameter(place: &Place) -> Option<&str> {
    match place {
        Place::Path { name, .. } => Some(name),
        _ => None,
    }
}

/// Why a limit cannot be looked for at this place.
fn misplaced(route: &WrittenRoute, limit: &WrittenPayload, place: &Place) -> Option<String> {
    let methods = || {
        let calls = route.calls.iter();
        calls.filter_map(|call| call.value.split_once(' ').map(|(method, _)| method))
    };
    let has_body = || methods().any(|method| WITH_BODY.contains(&method));
    let message = match (place, limit.measure?) {
        (Place::Whole, Measure::Form | Measure::File) if has_body() => return None,
        (Place::Whole, Measure::Form | Measure::File) => "none of these calls has a body",
        (Place::Whole, _) => "the body as a whole is measured as a form or a file; name a field",
        (_, Measure::Form | Measure::File) => {
            "a form and a file are the body as a whole; write \".\""
        }
        (Place::Path { name, is_list }, measure) => {
            let parameter = format!("{{{name}}}");
            let has = |call: &str| call.split('/').any(|segment| segment == parameter);
            if !route.calls.iter().any(|call| has(&call.value)) {
                return Some(format!("no path of this route has {parameter}"));
            }
            match measure {
                Measure::Entries if !is_list => {
                    return Some(format!(
                        "entries are those of a list; write \"{parameter}[]\""
                    ));
                }
                _ => return None,
            }
        }
        (Place::Value(_) | Place::Names(_), _) if !has_body() => "none of these calls has a body",
        (Place::Value(steps), Measure::Entries) => match steps.last() {
            Some(Step::Items | Step::Any) => return None,
            _ => {
                "entries are those of an array or an object; write e.g. \"to[]\" or \"metaData.*\""
            }
        },
        (Place::Names(_), Measure::Entries) => "names have no entries; write e.g. \"metaData.*\"",
        (Place::Value(_) | Place::Names(_), _) => return None,
    };
    Some(message.to_owned())
}
