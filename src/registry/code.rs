//! Codes of diagnostics: stable names that people search for and filter by.
//!
//! `docs/reference/diagnostics.md` lists every code. A code keeps its name and its meaning. The
//! texts of diagnostics may change.

use std::fmt;

/// Declares [`Code`] with the name and the meaning of each code.
macro_rules! codes {
    ($($variant:ident $name:literal $meaning:literal)*) => {
        /// Kind of a diagnostic.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        impl Code {
            /// Every code, in the order of the reference page.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the stable name, such as `rule.unknown-key`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Returns what the code means, as a sentence of the reference page.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => $meaning,)*
                }
            }
        }
    };
}

codes! {
    FileUnreadable "file.unreadable" "A file, directory or link cannot be read, or is not a regular file."
    FileLink "file.link-outside" "A symbolic link leads out of the registry's directory."
    FileEncoding "file.encoding"
        "A file or its name is not UTF-8, or the file holds a NUL character."
    FileTooLarge "file.too-large" "A file is larger, or a directory nested deeper, than the limit."
    FileEmpty "file.empty" "A file holds no document."
    FileFormat "file.format" "`format` names a format that this build does not read."
    RegistryEmpty "registry.empty" "The directory holds no rule file."
    RegistryTooLarge "registry.too-large"
        "The files together are beyond a limit: files, bytes, values, aliases or patterns."
    YamlSyntax "yaml.syntax" "The text is not YAML."
    JsonSyntax "json.syntax" "The text of a `.json` file is not JSON."
    YamlDocuments "yaml.several-documents" "A file holds a second document."
    YamlTag "yaml.tag" "A value has a YAML tag."
    YamlMerge "yaml.merge-key" "A mapping uses `<<`."
    YamlAlias "yaml.alias-cycle" "An alias is inside its own anchor."
    YamlKey "yaml.key" "A key is missing, or is a list or a mapping."
    YamlDuplicate "yaml.duplicate-key" "A mapping has one key twice."
    YamlDepth "yaml.too-deep" "Values are nested deeper than the limit."
    YamlNumber "yaml.number" "A number that JSON does not have, or that YAML reads as another one."
    UnknownKey "rule.unknown-key" "A mapping has a key that this format does not know."
    MissingKey "rule.missing-key" "A key that is required here is missing."
    MisplacedKey "rule.misplaced-key"
        "A key has no meaning beside this verb, or beside another key."
    WrongType "rule.wrong-type" "A value has another type than its key takes."
    InvalidValue "rule.invalid-value"
        "A value has the right type and is not one that its key takes."
    NoVerb "rule.no-verb" "An effect has none of the six verbs."
    SecondVerb "rule.second-verb" "An effect has two verbs."
    NoTarget "rule.no-target" "A verb has no key or tag to act on."
    InvalidName "rule.invalid-name"
        "An event, a routing key, a loader or a `let` has a name that is not allowed."
    RetiredKey "event.retired-key" "A retired event has rules, examples or bindings."
    ManyValues "template.many-values"
        "A value, URL, time or version of one key reads an array with many elements."
    TemplateSyntax "template.syntax" "A template or a path is malformed."
    TemplateName "template.unknown-name" "A template reads a name that does not exist here."
    TemplateEvent "template.event-value"
        "A text that is the same for all events reads a value of the event."
    UrlSyntax "url.syntax" "The path or query of a `from` is malformed."
    ExpressionSyntax "expression.syntax" "The text is not a CEL expression."
    ExpressionName "expression.unknown-name" "An expression reads a name that does not exist here."
    ExpressionFunction "expression.unknown-function"
        "An expression calls a function or method that does not exist."
    ExpressionCall "expression.invalid-call"
        "A function is called with arguments that it does not take."
    ExpressionUnsupported "expression.unsupported"
        "An expression uses a part of CEL that is not supported."
    ExpressionSize "expression.too-large" "An expression is too long or nested too deep."
    ExpressionPattern "expression.pattern"
        "The pattern of `matches` is not a regular expression, or is not written in the expression."
    VarMissing "vars.missing" "`{vars.NAME}` has no value. A warning in `check` and `plan`."
    VarInvalid "vars.invalid"
        "A variable is empty, holds a control character, or is read as more than text."
    LoaderUrl "loader.url" "A loader's URL is not an absolute HTTP URL without query and fragment."
    LoaderHeader "loader.header"
        "A loader's header has a name or value that HTTP does not allow, or that each request sets."
    LoaderUnknown "loader.unknown"
        "A `from` names no loader, or one that several other files declare."
    SchemaInvalid "data.invalid-schema" "`data` is not a JSON Schema."
    SchemaDraft "data.draft" "`data` names another draft than JSON Schema 2020-12."
    SchemaReference "data.reference" "A `$ref` leaves the file, or points at nothing."
    SchemaKeyword "data.unknown-keyword" "JSON Schema ignores a keyword that is probably misspelt."
    SchemaNumber "data.number" "A number has more digits than a schema keeps."
    SchemaPattern "data.slow-pattern"
        "A pattern with look-around or a back-reference has no `maxLength` beside it."
    FieldUndeclared "data.undeclared-field" "A rule reads a field that `data` does not declare."
    FieldOptional "data.optional-field" "A rule needs a field that `data` does not require."
    FieldUnread "data.unread-field" "`data` declares a field that no rule reads."
    DataMissing "data.missing" "A key names a field of an event that has no `data`."
    KeyOwn "key.reserved" "A key begins with `unstale:`."
    KeyOfTag "key.tag-set" "A key begins with `UNSTALE_TAG_PREFIX`, so it may be the set of a tag."
    KeyFreeText "key.free-text" "The publisher may choose any text for a part of a key."
    KeyWildcard "key.wildcard" "A name holds `*`, which matches nothing."
    KeyAmbiguous "key.ambiguous" "Nothing separates two placeholders of a name."
    ForeignSyntax "template.foreign-syntax"
        "A placeholder is written as another language writes it."
    WriteUnversioned "write.unversioned" "A `write` has no `version`."
    WriteEntity "write.shared-key" "A versioned `write` has one key for several entities."
    EffectUndone "effect.undone" "An effect removes what an earlier one of the same event stored."
    EffectRepeated "effect.repeated" "Two effects of one event have the same verb and target."
    TtlNever "ttl.never" "A stored value never expires."
    EventEvery "event.catch-all" "Every event invalidates a tag."
    EventRetired "event.retired"
        "An event definition, or a binding, is for an event that another definition retires."
    ExampleInvalid "example.invalid" "An example is not an event of its event definition."
    ExampleFailed "example.failed" "The rules do not do what an example expects."
    ExampleCost "example.too-costly" "The examples together need more work than is allowed."
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
