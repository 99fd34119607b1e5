// @generated automatically by Diesel CLI.

diesel::table! {
    entries (id) {
        id -> Int8,
        text -> Text,
        finished_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    jobs (id) {
        id -> Int8,
        payload -> Text,
        attempts -> Int4,
        run_at -> Timestamptz,
        last_error -> Nullable<Text>,
        died_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    ledger (id) {
        id -> Int8,
        job_id -> Int8,
        account -> Int4,
        amount -> Int4,
    }
}

diesel::table! {
    notes (id) {
        id -> Int8,
        text -> Text,
        backend -> Int4,
    }
}

diesel::allow_tables_to_appear_in_same_query!(entries, jobs, ledger, notes,);
