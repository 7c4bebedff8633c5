//! Whether the endpoint at the other end of a shared connection still lives.
//!
//! Only what is read from it says so: what is written may go nowhere for a quarter of an hour before the system notices.

use std::time::Duration;
use tokio::time::Instant;

/// Without a sign of life for so long the endpoint is asked for one, while somebody waits for it; after as long again the connection
/// is given up. Twice this is below the usual timeout of an attempt. Also how long closing a connection may take.
pub(crate) const SILENCE: Duration = Duration::from_secs(5);

/// What was heard from the endpoint of one connection, and when.
#[derive(Debug, Default)]
pub(crate) struct Vigil {
    /// Bytes read when it was last looked at.
    read: u64,
    /// Since when nothing was read although somebody waited. Who gives up waiting does not end it.
    silent_since: Option<Instant>,
    was_asked: bool,
    left_since: Option<Instant>,
}

/// What is known of a connection at an instant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signs {
    /// Bytes read from the endpoint so far.
    pub(crate) read: u64,
    /// Whether somebody waits for it.
    pub(crate) is_awaited: bool,
    /// Whether nobody will make requests any more.
    pub(crate) is_left: bool,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing, before this instant at least.
    Rest(Option<Instant>),
    /// Ask for a sign of life.
    Ask,
    /// Give the connection up.
    End,
}

impl Vigil {
    /// Looks at the connection; called whenever something has happened on it.
    pub(crate) fn look(&mut self, signs: Signs, now: Instant) -> Next {
        if signs.read != self.read {
            *self = Self { read: signs.read, left_since: self.left_since, ..Self::default() };
        }
        if signs.is_awaited {
            self.silent_since.get_or_insert(now);
        }
        if signs.is_left {
            self.left_since.get_or_insert(now);
        }
        let answer_by =
            self.silent_since.map(|since| since + if self.was_asked { 2 * SILENCE } else { SILENCE });
        let closed_by = self.left_since.map(|since| since + SILENCE);
        let is_over = |by: Option<Instant>| by.is_some_and(|by| by <= now);
        if is_over(closed_by) || self.was_asked && is_over(answer_by) {
            return Next::End;
        }
        if is_over(answer_by) {
            self.was_asked = true;
            return Next::Ask;
        }
        Next::Rest(answer_by.into_iter().chain(closed_by).min())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITING: Signs = Signs { read: 0, is_awaited: true, is_left: false };

    #[test]
    fn who_says_nothing_is_asked_and_then_given_up_whatever_is_sent_to_it() {
        let (mut vigil, begin) = (Vigil::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(vigil.look(Signs { is_awaited: false, ..WAITING }, begin), Next::Rest(None));
        assert_eq!(vigil.look(WAITING, at(1)), Next::Rest(Some(at(6))));
        // A request was given up, and others came: that is no sign of life.
        assert_eq!(vigil.look(Signs { is_awaited: false, ..WAITING }, at(4)), Next::Rest(Some(at(6))));
        assert_eq!(vigil.look(WAITING, at(6)), Next::Ask);
        assert_eq!(vigil.look(WAITING, at(7)), Next::Rest(Some(at(11))));
        assert_eq!(vigil.look(WAITING, at(11)), Next::End);
    }

    #[test]
    fn an_answer_is_a_sign_of_life_and_nobody_listens_when_nothing_is_awaited() {
        let (mut vigil, begin) = (Vigil::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        vigil.look(WAITING, begin);
        assert_eq!(vigil.look(WAITING, at(5)), Next::Ask);
        assert_eq!(vigil.look(Signs { read: 1, ..WAITING }, at(6)), Next::Rest(Some(at(11))));
        let answered = Signs { read: 2, is_awaited: false, is_left: false };
        assert_eq!(vigil.look(answered, at(7)), Next::Rest(None));
        assert_eq!(vigil.look(answered, at(1000)), Next::Rest(None));
    }

    #[test]
    fn a_connection_that_was_left_is_closed_in_time_whatever_still_comes() {
        let (mut vigil, begin) = (Vigil::default(), Instant::now());
        let left = |read| Signs { read, is_awaited: false, is_left: true };
        assert_eq!(vigil.look(left(0), begin), Next::Rest(Some(begin + SILENCE)));
        assert_eq!(vigil.look(left(9), begin + SILENCE), Next::End);
    }
}
