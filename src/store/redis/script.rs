//! The Lua that decides, as Redis takes it: `script/counters.lua` says what goes in and out.

/// What the decisions of most calls need: counters of windows and of days.
const RATES: &str = concat!(
    include_str!("script/counters.lua"),
    include_str!("script/run.lua"),
);
/// The same with slots and totals. A run makes all functions anew: of these there are many.
const ALL: &str = concat!(
    include_str!("script/counters.lua"),
    include_str!("script/slots.lua"),
    include_str!("script/totals.lua"),
    include_str!("script/run.lua"),
);

/// A script's text and how Redis calls it.
#[derive(Debug)]
pub(super) struct Script {
    /// As `EVAL` takes it.
    pub(super) text: &'static str,
    /// SHA-1 of the text, as `EVALSHA` takes it.
    pub(super) sha: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self {
            text,
            sha: redis::Script::new(text).get_hash().to_owned(),
        }
    }
}

/// All that batches run.
#[derive(Debug)]
pub(super) struct Scripts {
    rates: Script,
    all: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            rates: Script::new(RATES),
            all: Script::new(ALL),
        }
    }

    /// The smallest that knows what is in a batch.
    pub(super) fn of(&self, is_of_rates: bool) -> &Script {
        match is_of_rates {
            true => &self.rates,
            false => &self.all,
        }
    }
}
