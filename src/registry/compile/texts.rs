//! Compiles the texts of a file into templates and expressions, and reports problems at their
//! place.

use serde_json::Value;

use super::super::code::Code;
use super::super::diagnostic::{Diagnostic, Report};
use super::super::document::{Defaults, Text, VersionDocument};
use super::super::expression::{Expression, TextPatterns};
use super::super::lint::{self, Reads, Role};
use super::super::model::{Family, Validate, VersionRule};
use super::super::options::{LoadOptions, MissingVars};
use super::super::path::{KnownNames, TextProblem};
use super::super::template::Template;
use super::super::tree::{Content, Node, ScalarKind};
use super::super::url_template::UrlTemplate;
use super::super::value_template::ValueTemplate;

/// The event definition that a text belongs to.
#[derive(Clone, Copy)]
pub(in super::super) struct Context<'d> {
    /// Name of the definition.
    pub(in super::super) name: &'d Text,
    /// Index of its file.
    pub(in super::super) file: usize,
    /// Index of the definition in the registry.
    pub(in super::super) place: u32,
    /// Defaults of the file.
    pub(in super::super) defaults: Option<&'d Defaults>,
    /// JSON Schema of the payload.
    pub(in super::super) schema: Option<&'d Value>,
    /// Effect of a payload that violates the schema.
    pub(in super::super) validate: Validate,
    /// Fields that the definition's texts read.
    pub(in super::super) reads: &'d Reads,
}

/// Compiles the texts of one file.
pub(in super::super) struct TextCompiler<'c, 'r, 's> {
    pub(in super::super) options: &'c LoadOptions,
    pub(in super::super) report: &'r mut Report<'s>,
    pub(in super::super) patterns: &'r mut TextPatterns,
}

impl TextCompiler<'_, '_, '_> {
    /// Compiles a template.
    pub(super) fn template(
        &mut self,
        text: &Text,
        context: &Context<'_>,
        lets: &[String],
        in_each: bool,
        role: Role,
    ) -> Option<Template> {
        let compiled =
            Template::parse(&text.text, &KnownNames { lets, in_each, vars: &self.options.vars });
        let mut template = self.checked(text, compiled)?;
        self.vars(text, template.vars().map(str::to_owned).collect());
        context.reads.note(template.paths());
        if role == Role::Key {
            context.reads.note_key(template.paths());
        }
        if matches!(role, Role::Key | Role::Name) {
            // With `validate: warn` a payload may violate the schema.
            let enforced = context.schema.filter(|_| context.validate == Validate::Enforce);
            template.end_at_delimiters(|path| lint::is_bounded(path, enforced));
            lint::check_name(text, &template, enforced, self.report);
        }
        lint::check_paths(text, template.paths(), context.schema, role, in_each, self.report);
        lint::check_foreign(text, template.has_placeholder(), context.schema, self.report);
        Some(template)
    }

    /// Compiles an expression.
    pub(super) fn expression(
        &mut self,
        text: &Text,
        context: &Context<'_>,
        lets: &[String],
        in_each: bool,
    ) -> Option<Expression> {
        let compiled = Expression::compile_sharing(
            &text.text,
            &KnownNames { lets, in_each, vars: &self.options.vars },
            self.patterns,
        );
        let expression = self.checked(text, compiled)?;
        self.vars(text, expression.vars().map(str::to_owned).collect());
        context.reads.note(expression.paths().iter());
        lint::check_paths(
            text,
            expression.paths().iter(),
            context.schema,
            Role::Expression,
            in_each,
            self.report,
        );
        Some(expression)
    }

    /// Compiles the path and query of a rule's URL.
    pub(super) fn url(
        &mut self,
        text: &Text,
        context: &Context<'_>,
        lets: &[String],
        in_each: bool,
    ) -> Option<UrlTemplate> {
        let compiled =
            UrlTemplate::parse(&text.text, &KnownNames { lets, in_each, vars: &self.options.vars });
        let url = self.checked(text, compiled)?;
        self.vars(text, url.vars().map(str::to_owned).collect());
        context.reads.note(url.paths());
        lint::check_paths(text, url.paths(), context.schema, Role::Other, in_each, self.report);
        Some(url)
    }

    /// Compiles a text that may read variables only. Returns `None` if one of them has no value.
    pub(super) fn literal(&mut self, text: &Text, what: &str, is_secret: bool) -> Option<String> {
        let problems = self.report.problems.len();
        let compiled = Template::parse(
            &text.text,
            &KnownNames { lets: &[], in_each: false, vars: &self.options.vars },
        );
        let template = self.checked(text, compiled);
        let literal = template.and_then(|template| {
            self.vars(text, template.vars().map(str::to_owned).collect());
            if let Some(path) = template.paths().next() {
                let message = format!(
                    "`{path}` is a value of the event, and {what} is the same for all events"
                );
                self.report.error_with_help(
                    Code::TemplateEvent,
                    text.at,
                    message,
                    "{vars.NAME} reads UNSTALE_VAR_NAME; a literal brace is {{",
                );
            }
            template.as_literal().map(str::to_owned)
        });
        if is_secret {
            self.hide_lines(problems);
        }
        literal
    }

    /// Removes the source lines of the problems from that index on, because they may show a secret.
    pub(super) fn hide_lines(&mut self, from: usize) {
        for problem in &mut self.report.problems[from..] {
            problem.source_line = None;
        }
    }

    /// Compiles the version of a `write`.
    pub(super) fn version(
        &mut self,
        version: &VersionDocument,
        context: &Context<'_>,
        lets: &[String],
        in_each: bool,
    ) -> Option<VersionRule> {
        let of = self.template(&version.of, context, lets, in_each, Role::Other);
        let family = match &version.entity {
            None => Family::EventType,
            Some(entity) => {
                Family::Entity(self.template(entity, context, lets, in_each, Role::Name)?)
            }
        };
        Some(VersionRule { of: of?, family })
    }

    /// Compiles a value with templates in it.
    pub(super) fn value(
        &mut self,
        node: &Node,
        context: &Context<'_>,
        lets: &[String],
        in_each: bool,
    ) -> Option<ValueTemplate> {
        Some(match &node.content {
            Content::Object(members) => {
                let compiled = members.iter().map(|member| {
                    Some((member.key.clone(), self.value(&member.value, context, lets, in_each)?))
                });
                ValueTemplate::Object(
                    compiled.collect::<Vec<_>>().into_iter().collect::<Option<_>>()?,
                )
            }
            Content::Array(items) => {
                let compiled: Vec<_> =
                    items.iter().map(|item| self.value(item, context, lets, in_each)).collect();
                ValueTemplate::Array(compiled.into_iter().collect::<Option<_>>()?)
            }
            Content::Scalar(scalar) => match scalar.kind {
                ScalarKind::Null => ValueTemplate::Null,
                ScalarKind::Bool => ValueTemplate::Bool(scalar.text.eq_ignore_ascii_case("true")),
                ScalarKind::Number => {
                    let number = scalar.number_text()?;
                    if number != scalar.text {
                        let message = format!("`{}` is the number {number} in YAML", scalar.text);
                        self.report.warn(
                            Code::YamlNumber,
                            node.at,
                            message,
                            "quote it to make it text, or write the number that is meant",
                        );
                    }
                    ValueTemplate::Number(number.into_owned())
                }
                ScalarKind::Text => {
                    let text = Text {
                        at: node.at,
                        text: scalar.text.clone(),
                        verbatim_from: scalar.verbatim_from,
                    };
                    ValueTemplate::Text(self.template(
                        &text,
                        context,
                        lets,
                        in_each,
                        Role::Other,
                    )?)
                }
            },
        })
    }

    fn checked<T>(&mut self, text: &Text, compiled: Result<T, TextProblem>) -> Option<T> {
        compiled
            .map_err(|problem| {
                let mut located = Diagnostic::at(
                    problem.code,
                    self.report.source,
                    text.place_of(problem.at),
                    problem.message,
                );
                located.help = problem.help;
                self.report.push(located);
            })
            .ok()
    }

    fn vars(&mut self, text: &Text, names: Vec<String>) {
        for name in names {
            if !self.options.vars.0.contains_key(&name) {
                let at = text.place_of(text.text.find(&format!("vars.{name}")).unwrap_or(0));
                let mut problem = Diagnostic::at(
                    Code::VarMissing,
                    self.report.source,
                    at,
                    format!("`vars.{name}` has no value"),
                )
                .help(format!(
                    "set UNSTALE_VAR_{name}, or UNSTALE_VAR_{name}_FILE to the file that holds it"
                ));
                problem = problem.of_missing_var(&name);
                if self.options.missing_vars == MissingVars::Warn {
                    problem = problem.warning();
                }
                self.report.push(problem);
            }
        }
    }
}
