//! Places of a body as a tree: what is asked of a value, and of what is in it.

use smallvec::SmallVec;

use super::place::{Place, Step};
use super::{Measure, Rule};

/// A node's index; 0 is the body.
pub(super) type NodeId = usize;

/// What is asked of the values at one place.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Fields that are looked at, by name.
    fields: Vec<(Box<str>, NodeId)>,
    /// Of all other fields.
    any: Option<NodeId>,
    /// Of elements.
    pub(super) items: Option<NodeId>,
    /// Rules that measure the value itself.
    pub(super) rules: SmallVec<[usize; 2]>,
    /// Rules of its fields, which measure the value where it is no object: another type is no way
    /// around a length.
    pub(super) instead: SmallVec<[usize; 2]>,
    /// Rules that count its elements.
    pub(super) elements: SmallVec<[usize; 1]>,
    /// Rules that count its fields.
    pub(super) entries: SmallVec<[usize; 1]>,
    /// Rules that measure the names of its fields.
    pub(super) names: SmallVec<[usize; 1]>,
    /// Whether the value is the message's type.
    pub(super) is_kind: bool,
    /// Whether JSON that is no string is measured in characters.
    pub(super) counts_characters: bool,
}

/// What a field's name means to the object that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// This field, by its number, and what is asked of it.
    Field(usize, NodeId),
    /// A field like any other.
    Any(Option<NodeId>),
    /// A field that is looked at, but for its case: some parsers take it for that one.
    Near,
}

impl Node {
    /// Whether an object at this place is looked into.
    pub(super) fn looks_into_objects(&self) -> bool {
        !self.fields.is_empty()
            || self.any.is_some()
            || !self.names.is_empty()
            || !self.entries.is_empty()
    }

    /// Whether every name matters, and none may be there twice.
    pub(super) fn is_open(&self) -> bool {
        self.any.is_some() || !self.names.is_empty() || !self.entries.is_empty()
    }

    /// The longest name that can be one of those that are looked at, in bytes. A letter has at
    /// most three bytes whose capital is ASCII.
    pub(super) fn longest_name(&self) -> usize {
        let longest = self.fields.iter().map(|(name, _)| name.len()).max();
        longest.unwrap_or(0) * 3
    }

    /// What this name means here; `None`: one that is longer than all that are looked at.
    pub(super) fn named(&self, name: Option<&str>) -> Named {
        let Some(name) = name else {
            return Named::Any(self.any);
        };
        let mut fields = self.fields.iter().enumerate();
        if let Some((nth, (_, id))) = fields.find(|(_, (field, _))| **field == *name) {
            return Named::Field(nth, *id);
        }
        let mut fields = self.fields.iter();
        match fields.any(|(field, _)| super::is_near(name, field)) {
            true => Named::Near,
            false => Named::Any(self.any),
        }
    }
}

/// All places of a body.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    /// Whether messages have a type that some rule asks for.
    pub(super) has_kind: bool,
    /// Whether anything is measured in characters.
    pub(super) counts_characters: bool,
}

impl Tree {
    pub(super) fn new(rules: &[Rule], kind: &[Step]) -> Self {
        let mut tree = Self {
            nodes: vec![Node::default()],
            has_kind: rules.iter().any(Rule::waits),
            counts_characters: rules.iter().any(|rule| rule.measure == Measure::Characters),
        };
        for (nth, rule) in rules.iter().enumerate() {
            match (&rule.place, rule.measure) {
                (Place::Value(steps), Measure::Entries) => {
                    let Some((last, container)) = steps.split_last() else {
                        continue;
                    };
                    let node = tree.grow(container);
                    match last {
                        Step::Items => node.elements.push(nth),
                        Step::Any => node.entries.push(nth),
                        Step::Field(_) => {}
                    }
                }
                (Place::Value(steps), measure) => {
                    let node = tree.grow(steps);
                    node.rules.push(nth);
                    node.counts_characters |= measure == Measure::Characters;
                    if let Some((Step::Field(_) | Step::Any, container)) = steps.split_last()
                        && !container.is_empty()
                    {
                        let node = tree.grow(container);
                        node.instead.push(nth);
                        node.counts_characters |= measure == Measure::Characters;
                    }
                }
                (Place::Names(steps), _) => tree.grow(steps).names.push(nth),
                (Place::Path { .. } | Place::Whole, _) => {}
            }
        }
        if tree.has_kind && !kind.is_empty() {
            tree.grow(kind).is_kind = true;
        }
        tree
    }

    /// The node at these steps, made if need be.
    fn grow(&mut self, steps: &[Step]) -> &mut Node {
        let mut at = 0;
        for step in steps {
            let known = self.nodes.get(at).and_then(|node| match step {
                Step::Field(name) => {
                    let known = node.fields.iter().find(|(field, _)| field == name);
                    known.map(|(_, id)| *id)
                }
                Step::Any => node.any,
                Step::Items => node.items,
            });
            at = known.unwrap_or_else(|| {
                let id = self.nodes.len();
                self.nodes.push(Node::default());
                if let Some(node) = self.nodes.get_mut(at) {
                    match step {
                        Step::Field(name) => node.fields.push((name.clone(), id)),
                        Step::Any => node.any = Some(id),
                        Step::Items => node.items = Some(id),
                    }
                }
                id
            });
        }
        &mut self.nodes[at]
    }

    pub(super) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }
}
