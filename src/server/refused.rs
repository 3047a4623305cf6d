//! What helps where a server could not be entered, or said no.

use std::io::ErrorKind;

use sqlx::Error as Driver;

/// What to do about a connection that did not come about.
pub(super) fn connecting(error: &Driver) -> &'static str {
    match error {
        Driver::Database(answer) => answered(answer.code().as_deref()),
        Driver::Io(error) => match error.kind() {
            ErrorKind::NotFound => {
                "no server listens at this socket: start the server, or name the directory of its socket, or its host, in PGHOST, \
                 and its port in PGPORT (`show unix_socket_directories` and `show port` in psql)"
            }
            ErrorKind::ConnectionRefused => {
                "no server listens there: start it, or name its host or socket directory in PGHOST and its port in PGPORT"
            }
            ErrorKind::PermissionDenied => {
                "this user may not use the socket: run the command as the server's user, or set PGHOST=localhost"
            }
            _ => HOW_TO_CONNECT,
        },
        Driver::Tls(_) => {
            "PGSSLMODE says whether TLS is demanded, PGSSLROOTCERT names the authority that signed the server's certificate"
        }
        _ => HOW_TO_CONNECT,
    }
}

/// What to do about a query that the server refused.
pub(super) fn asking(error: &Driver) -> Option<&'static str> {
    let code = error.as_database_error()?.code()?;
    Some(match code.as_ref() {
        "42501" => {
            "give the role the rights that the book's page \"PostgreSQL settings\" lists (GRANT EXECUTE ON FUNCTION …), or connect as \
             a superuser with PGUSER"
        }
        "57P01" | "57P02" | "57P03" => "the server stops or starts: try again when it is up",
        "55000" => "the server's settings or its state do not allow this; its message says which",
        _ => return None,
    })
}

const HOW_TO_CONNECT: &str =
    "PGHOST, PGPORT, PGUSER and PGPASSFILE say how to connect, as for psql";

/// By the server's SQLSTATE (errcodes.txt).
fn answered(code: Option<&str>) -> &'static str {
    match code {
        Some("28P01") => {
            "the password is wrong or missing: PGPASSWORD or the file that PGPASSFILE names (~/.pgpass) gives it"
        }
        Some("28000") => {
            "PGUSER names the role: it must exist, and pg_hba.conf must let it in from here to this database (`peer` wants the \
             operating system's user of the same name)"
        }
        Some("3D000") => {
            "PGDATABASE names the database: any that is there will do, such as postgres"
        }
        Some("53300") => "all connections are taken: close some, or raise max_connections",
        Some("57P03") => "the server starts, stops or recovers: try again when it is up",
        _ => HOW_TO_CONNECT,
    }
}
