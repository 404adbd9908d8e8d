//! The task's ID in an answer: `data.taskId`, or `data` itself (`service.md`: push/list/label
//! and push/task).

use serde_json::Value;

/// The largest answer in which an ID is looked for, in bytes.
pub(super) const MAX_ANSWER: usize = 64 * 1024;

/// The ID that an answer names.
pub(super) fn id(answer: &[u8]) -> Option<String> {
    let mut answer: Value = serde_json::from_slice(answer).ok()?;
    let mut data = answer.get_mut("data")?.take();
    let id = match &mut data {
        Value::Object(_) => data.get_mut("taskId")?.take(),
        _ => data,
    };
    match id {
        Value::String(id) if !id.is_empty() => Some(id),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::id;

    #[test]
    fn both_documented_forms_name_a_task() {
        assert_eq!(
            id(br#"{"data":{"taskId":968120369184112182}}"#).as_deref(),
            Some("968120369184112182")
        );
        assert_eq!(
            id(br#"{"data":968120369184112182}"#).as_deref(),
            Some("968120369184112182")
        );
        assert_eq!(id(br#"{"data":"t-1"}"#).as_deref(), Some("t-1"));
    }

    #[test]
    fn an_answer_without_an_id_names_none() {
        for answer in [
            &b"{}"[..],
            b"[]",
            b"{\"data\":{}}",
            b"{\"data\":null}",
            b"{\"data\":\"\"}",
            b"{\"data\":5",
        ] {
            assert_eq!(id(answer), None);
        }
    }
}
