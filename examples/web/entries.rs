//! The list of things to do: the page, its forms, and the same as JSON.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Form, Path, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Nullable, Timestamptz};
use maud::html;
use serde::{Deserialize, Serialize};

use crate::app::{App, Problem};
use crate::layout;
use crate::schema::entries;

#[derive(Queryable, Serialize)]
pub(crate) struct Entry {
    id: i64,
    text: String,
    finished: bool,
}

/// What the user has typed. A form without the field counts as empty.
#[derive(Default, Deserialize)]
pub(crate) struct Draft {
    #[serde(default)]
    text: String,
}

/// How many entries the page lists.
const LISTED: i64 = 100;

/// In characters.
const LONGEST_TEXT: usize = 200;

pub(crate) async fn list(State(app): State<App>) -> Result<Html<String>, Problem> {
    Ok(page(&app.run(newest).await?, &Draft::default(), None))
}

pub(crate) async fn json(State(app): State<App>) -> Result<Json<Vec<Entry>>, Problem> {
    Ok(Json(app.run(newest).await?))
}

pub(crate) async fn add(
    State(app): State<App>,
    Form(draft): Form<Draft>,
) -> Result<Response, Problem> {
    let text = draft.text.trim().to_owned();
    if let Some(reason) = complaint(&text) {
        let page = page(&app.run(newest).await?, &draft, Some(reason));
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, page).into_response());
    }
    app.write(move |connection| {
        diesel::insert_into(entries::table).values(entries::text.eq(&text)).execute(connection)
    })
    .await?;
    Ok(Redirect::to("/").into_response())
}

pub(crate) async fn finish(
    State(app): State<App>,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Redirect, Problem> {
    let Path(id) = id.map_err(|_| Problem::NotFound)?;
    app.write(move |connection| {
        // A second click changes nothing.
        let first_time = sql::<Nullable<Timestamptz>>("coalesce(finished_at, now())");
        let change =
            diesel::update(entries::table.find(id)).set(entries::finished_at.eq(first_time));
        change.returning(entries::id).get_result::<i64>(connection)
    })
    .await?;
    Ok(Redirect::to("/"))
}

fn newest(connection: &mut PgConnection) -> QueryResult<Vec<Entry>> {
    entries::table
        .select((entries::id, entries::text, entries::finished_at.is_not_null()))
        .order(entries::id.desc())
        .limit(LISTED)
        .load(connection)
}

/// Returns why a text is refused, if it is.
fn complaint(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        Some("Enter a text.")
    } else if text.chars().count() > LONGEST_TEXT {
        Some("The text has more than 200 characters.")
    } else if text.contains(char::REPLACEMENT_CHARACTER) {
        // Bytes that are not UTF-8 arrive as this character.
        Some("The text is not valid UTF-8.")
    } else if text.contains(char::is_control) {
        Some("The text contains control characters.")
    } else {
        None
    }
}

fn page(entries: &[Entry], draft: &Draft, complaint: Option<&str>) -> Html<String> {
    let body = html! {
        form.add method="post" action="/entries" {
            label for="text" { "New entry" }
            input #text name="text" value=(draft.text) maxlength=(LONGEST_TEXT) required
                autocomplete="off" aria-invalid=[complaint.map(|_| "true")]
                aria-describedby=[complaint.map(|_| "complaint")];
            button { "Add" }
            @if let Some(complaint) = complaint { p #complaint role="alert" { (complaint) } }
        }
        @if entries.is_empty() { p { "No entries yet." } }
        ul.entries { @for entry in entries { li { (row(entry)) } } }
        @if entries.len() as i64 == LISTED {
            p.small { "The newest " (LISTED) " entries are shown." }
        }
    };
    layout::page("Things to do", body)
}

fn row(entry: &Entry) -> maud::Markup {
    html! {
        @if entry.finished {
            s { (entry.text) } span.small { "finished" }
        } @else {
            span { (entry.text) }
            form method="post" action={ "/entries/" (entry.id) "/finish" } {
                button aria-label={ "Finish " (entry.text) } { "Finish" }
            }
        }
    }
}
