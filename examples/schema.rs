// @generated automatically by Diesel CLI.

diesel::table! {
    entries (id) {
        id -> Int4,
        text -> Text,
        finished_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    notes (id) {
        id -> Int4,
        text -> Text,
        backend -> Int4,
    }
}

diesel::allow_tables_to_appear_in_same_query!(entries, notes,);
