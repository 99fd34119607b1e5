//! Enums whose variants have a name for metrics and words for people.

/// Declares such an enum, with `ALL`, `as_str` and `Display`.
macro_rules! named {
    (
        $(#[$doc:meta])*
        pub enum $enum:ident {
            $($(#[$variant_doc:meta])* $variant:ident = $name:literal, $words:literal;)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum $enum {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $enum {
            pub(crate) const ALL: [$enum; [$($name),*].len()] = [$($enum::$variant),*];

            /// Returns the name for metrics.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($enum::$variant => $name,)*
                }
            }
        }

        /// In words.
        impl std::fmt::Display for $enum {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    $($enum::$variant => $words,)*
                })
            }
        }
    };
}

pub(super) use named;
