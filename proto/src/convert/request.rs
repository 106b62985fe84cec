//! What all command requests have in common, whichever aggregate they are for.

use daybook_domain::aggregate::Aggregate;
use uuid::Uuid;

use super::Violations;
use crate::common::v1::CommandContext;

/// A request that carries a command for an aggregate: what all of them have in common.
pub trait CommandRequest: prost::Message + Sized {
    /// The aggregate that is asked.
    type Aggregate: Aggregate;

    /// The gRPC service that takes it, with its package ("daybook.orders.v1.OrderService").
    const SERVICE: &'static str;

    /// The command's name, as auditors see it ("PlaceOrder"), and that of the service's method.
    const NAME: &'static str;

    /// How it is addressed over HTTP; `None` for one that begins an aggregate.
    const ACTION: Option<Action>;

    /// The caller's idempotency key.
    fn request_id(&self) -> &str;

    /// Puts in the caller's idempotency key.
    fn set_request_id(&mut self, key: String);

    /// Takes the idempotency key out, which leaves the content that a key is bound to.
    fn take_request_id(&mut self) -> String;

    /// Who, why and what caused it.
    fn take_context(&mut self) -> CommandContext;

    /// The version that the caller expects the aggregate to have.
    fn expected_version(&self) -> Option<u64>;

    /// Puts in the version that the caller expects the aggregate to have.
    fn set_expected_version(&mut self, version: u64);

    /// The field with the id of the aggregate, unless the request begins one.
    fn aggregate_id(&mut self) -> Option<&mut String>;

    /// The aggregate's id and the command. Only a request that begins an aggregate may leave its id to the service,
    /// which then draws one with `new_id`.
    ///
    /// # Errors
    /// All that is wrong with the request.
    fn into_command(self, new_id: impl FnOnce() -> Uuid) -> Result<Addressed<Self::Aggregate>, Violations>;
}

/// How a command is addressed over HTTP: `POST /v1/orders/{order_id}/cancel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// What it is called there (`cancel`).
    pub name: &'static str,
    /// The field of the request that has the aggregate's id (`order_id`).
    pub id_field: &'static str,
}

/// An aggregate's id and a command for it.
pub type Addressed<A> = (<A as Aggregate>::Id, <A as Aggregate>::Command);

/// Implements [`CommandRequest`] for a request, given its aggregate, its service, the field of the aggregate's id, what it is
/// called over gRPC and over HTTP, and how its own fields become a command; `None` when they do not, which `$violations` then says. A
/// request that begins an aggregate says for itself where the id comes from; `@begins` is what it has in common with the others.
macro_rules! command_request {
    ($aggregate:ty, $service:path, $id_field:ident, $request:ty, $name:literal at $action:literal, |$fields:ident, $violations:ident| $command:expr) => {
        impl $crate::convert::CommandRequest for $request {
            command_request!(@common $aggregate, $service, $name);

            const ACTION: Option<$crate::convert::Action> = Some($crate::convert::Action {
                name: $action,
                id_field: stringify!($id_field),
            });

            fn aggregate_id(&mut self) -> Option<&mut String> {
                Some(&mut self.$id_field)
            }

            fn into_command(
                self,
                _: impl FnOnce() -> uuid::Uuid,
            ) -> Result<$crate::convert::Addressed<$aggregate>, $crate::convert::Violations> {
                let mut found = $crate::convert::Violations::default();
                let id = found.id(concat!("/", stringify!($id_field)), &self.$id_field);
                let command = {
                    let ($fields, $violations) = (self, &mut found);
                    $command
                };
                found.finish(id.zip(command))
            }
        }
    };
    (@begins $aggregate:ty, $service:path, $name:literal) => {
        command_request!(@common $aggregate, $service, $name);

        const ACTION: Option<$crate::convert::Action> = None;

        fn aggregate_id(&mut self) -> Option<&mut String> {
            None
        }
    };
    (@common $aggregate:ty, $service:path, $name:literal) => {
        type Aggregate = $aggregate;
        const SERVICE: &'static str = $service;
        const NAME: &'static str = $name;

        fn request_id(&self) -> &str {
            &self.request_id
        }

        fn set_request_id(&mut self, key: String) {
            self.request_id = key;
        }

        fn take_request_id(&mut self) -> String {
            std::mem::take(&mut self.request_id)
        }

        fn take_context(&mut self) -> $crate::common::v1::CommandContext {
            self.context.take().unwrap_or_default()
        }

        fn expected_version(&self) -> Option<u64> {
            self.expected_version
        }

        fn set_expected_version(&mut self, version: u64) {
            self.expected_version = Some(version);
        }
    };
}
