//! Messages as JSON, by their descriptors (<https://protobuf.dev/programming-guides/json>).

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use serde_json::Value;
use tonic::Status;

use crate::proto::DESCRIPTORS;
use crate::rpc::status;

/// The descriptors of all messages.
#[derive(Debug)]
pub(super) struct Types(DescriptorPool);

impl Types {
    pub(super) fn new() -> Self {
        let pool = DescriptorPool::decode(DESCRIPTORS).and_then(|mut pool| {
            pool.decode_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)?;
            Ok(pool)
        });
        Self(pool.expect("build.rs generates valid descriptors"))
    }

    /// The method of a path.
    pub(super) fn method(&self, path: &str) -> Option<MethodDescriptor> {
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        self.0.get_service_by_name(service)?.methods().find(|known| known.name() == method)
    }

    pub(super) fn message(&self, name: &str) -> Option<MessageDescriptor> {
        self.0.get_message_by_name(name)
    }
}

/// Encodes a message that is given in JSON.
///
/// # Errors
/// INVALID_ARGUMENT.
pub(super) fn from_json(message: MessageDescriptor, json: &[u8]) -> Result<Vec<u8>, Status> {
    let mut parser = serde_json::Deserializer::from_slice(json);
    let read = DynamicMessage::deserialize(message, &mut parser);
    let read = read.and_then(|message| parser.end().map(|()| message));
    read.map(|message| message.encode_to_vec()).map_err(|why| status::malformed(&why.to_string()))
}

/// Encodes a message that is given as a JSON value.
///
/// # Errors
/// INVALID_ARGUMENT.
pub(super) fn from_value(message: MessageDescriptor, json: Value) -> Result<Vec<u8>, Status> {
    let read = DynamicMessage::deserialize(message, json);
    read.map(|message| message.encode_to_vec()).map_err(|why| status::malformed(&why.to_string()))
}

/// A message as JSON.
pub(super) fn to_value(message: MessageDescriptor, encoded: &[u8]) -> Option<Value> {
    let message = DynamicMessage::decode(message, encoded).ok()?;
    serde_json::to_value(message).ok()
}

/// A message as JSON text.
///
/// # Errors
/// INTERNAL: the server made a message that is none.
pub(super) fn to_json(message: MessageDescriptor, encoded: &[u8]) -> Result<Vec<u8>, Status> {
    let internal = |why: String| status::internal(&why);
    let message =
        DynamicMessage::decode(message, encoded).map_err(|why| internal(why.to_string()))?;
    serde_json::to_vec(&message).map_err(|why| internal(why.to_string()))
}
