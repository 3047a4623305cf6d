//! The result of a drill as continuous integration reads it.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::check::{Check, Result};

/// A JUnit report with a test case for each check.
///
/// # Errors
/// Those of writing XML.
pub fn xml(checks: &[Check]) -> std::result::Result<String, quick_junit::SerializeError> {
    let mut suite = TestSuite::new("walhalla drill");
    suite.add_test_cases(checks.iter().map(case));
    let mut report = Report::new("walhalla drill");
    report.add_test_suite(suite);
    report.to_string()
}

fn case(check: &Check) -> TestCase {
    let detail = check.detail.as_deref().unwrap_or_default();
    let status = match check.result {
        Result::Passed => TestCaseStatus::success(),
        Result::Failed => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(detail.lines().next().unwrap_or_default());
            status.set_description(detail);
            status
        }
        Result::Skipped => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(detail);
            status
        }
    };
    let mut case = TestCase::new(&*check.name, status);
    case.set_classname("drill");
    case.set_time(Duration::try_from_secs_f64(check.seconds).unwrap_or_default());
    case
}
