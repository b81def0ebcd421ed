//! Requests as policies see them: the message's fields by the names of Kata's bindings. Bytes are left out, for they are what containers read and
//! write; of a file that is copied a policy sees its type and where a link leads.

use std::collections::BTreeMap;

use nacre_protocol::agent::CopyFileRequest;
use protobuf::reflect::{FieldDescriptor, ReflectFieldRef, ReflectValueRef};
use protobuf::{MessageDyn, MessageFull};
use regorus::Value;

/// S_IFMT of inode(7), and the types.
const FILE_TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;

type Object = BTreeMap<Value, Value>;

/// The policy's `input`.
pub(super) fn of<R: MessageFull>(request: &R) -> Value {
    let request: &dyn MessageDyn = request;
    let mut object = fields(request);
    if let Some(copy) = request.downcast_ref::<CopyFileRequest>() {
        describe(copy, &mut object);
    }
    Value::from(object)
}

fn describe(copy: &CopyFileRequest, object: &mut Object) {
    let (kind, target) = match copy.file_mode & FILE_TYPE {
        REGULAR => ("Regular", Value::Null),
        DIRECTORY => ("Directory", Value::Null),
        SYMLINK => ("Symlink", String::from_utf8_lossy(&copy.data).into_owned().into()),
        _ => ("Unknown", Value::Null),
    };
    object.insert("file_type".into(), kind.into());
    object.insert("symlink_target".into(), target);
}

fn fields(message: &dyn MessageDyn) -> Object {
    let one = |field: FieldDescriptor| (Value::from(name(&field)), field_value(&field, message));
    message.descriptor_dyn().fields().map(one).collect()
}

/// Rust's keywords have an underscore after them in the bindings.
fn name(field: &FieldDescriptor) -> String {
    match field.name() {
        "type" => "type_".into(),
        name => name.into(),
    }
}

fn field_value(field: &FieldDescriptor, message: &dyn MessageDyn) -> Value {
    match field.get_reflect(message) {
        ReflectFieldRef::Optional(value) => match value.value() {
            Some(value) => one(value),
            // Scalars are never absent, messages are.
            None => match field.get_singular_field_or_default(message) {
                ReflectValueRef::Message(_) => Value::Null,
                value => one(value),
            },
        },
        ReflectFieldRef::Repeated(values) => Value::from(values.into_iter().map(one).collect::<Vec<_>>()),
        ReflectFieldRef::Map(map) => {
            let pairs = map.into_iter().map(|(key, value)| (Value::from(key.to_string()), one(value)));
            Value::from(pairs.collect::<Object>())
        }
    }
}

fn one(value: ReflectValueRef<'_>) -> Value {
    match value {
        ReflectValueRef::U32(number) => Value::from(number),
        ReflectValueRef::U64(number) => Value::from(number),
        ReflectValueRef::I32(number) => Value::from(number),
        ReflectValueRef::I64(number) => Value::from(number),
        ReflectValueRef::F32(number) => Value::from(f64::from(number)),
        ReflectValueRef::F64(number) => Value::from(number),
        ReflectValueRef::Bool(value) => Value::from(value),
        ReflectValueRef::String(text) => Value::from(text),
        ReflectValueRef::Bytes(_) => Value::Null,
        ReflectValueRef::Enum(_, number) => Value::from(number),
        ReflectValueRef::Message(message) => Value::from(fields(&*message)),
    }
}
