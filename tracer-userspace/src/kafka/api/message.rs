//! How a message's fields are declared and read: [`message!`] takes the fields in the schema's words, with the versions
//! that have them, and makes the structure and its reader.

#![forbid(unsafe_code)]

use crate::kafka::wire::{DecodeError, LengthKind, Payload, Reader};
use crate::observe::TopicId;

/// What the version of a request settles about its shape; the table `versions` says it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Version of the request.
    pub(crate) version: i16,
    /// Compact lengths and tagged fields.
    pub(crate) flexible: bool,
    /// Topics go by id.
    pub(crate) topic_ids: bool,
}

impl Shape {
    const fn of_text(self) -> LengthKind {
        if self.flexible { LengthKind::Compact } else { LengthKind::Int16 }
    }

    const fn of_array(self) -> LengthKind {
        if self.flexible { LengthKind::Compact } else { LengthKind::Int32 }
    }
}

/// A value that can be read in place, so that what came before damage is kept.
pub(crate) trait Wire<'a>: Default {
    /// Reads the value at the cursor.
    fn read_into(&mut self, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError>;

    /// Whether an element that was damaged half-way holds enough to be kept.
    fn is_worth_keeping(&self) -> bool {
        false
    }
}

/// Declares a message or a part of one: `field: type = default, versions;` in wire order, then the tagged ones with their
/// tags, then what makes a damaged one worth keeping.
macro_rules! message {
    (
        $(#[$meta:meta])*
        pub struct $name:ident $(<$lt:lifetime>)? {
            $( $(#[$field_meta:meta])* $field:ident : $type:ty $(= $default:expr)?, $versions:expr ; )*
        }
        $( tagged { $( $(#[$tagged_meta:meta])* $tag:literal $tagged:ident : $tagged_type:ty $(= $tagged_default:expr)?, $tagged_versions:expr ; )* } )?
        $( keep |$this:ident| $keep:expr )?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name $(<$lt>)? {
            $( $(#[$field_meta])* pub $field: $type, )*
            $( $( $(#[$tagged_meta])* pub $tagged: $tagged_type, )* )?
        }

        impl $(<$lt>)? Default for $name $(<$lt>)? {
            fn default() -> Self {
                Self {
                    $( $field: $crate::kafka::api::message::message!(@default $($default)?), )*
                    $( $( $tagged: $crate::kafka::api::message::message!(@default $($tagged_default)?), )* )?
                }
            }
        }

        impl<'a> $crate::kafka::api::message::Wire<'a> for $name $(<$lt>)? {
            fn read_into(
                &mut self,
                reader: &mut $crate::kafka::wire::Reader<'a>,
                shape: $crate::kafka::api::message::Shape,
            ) -> Result<(), $crate::kafka::wire::DecodeError> {
                $(
                    if ($versions).contains(&shape.version) {
                        reader.field(stringify!($field));
                        $crate::kafka::api::message::Wire::read_into(&mut self.$field, reader, shape)?;
                    }
                )*
                if shape.flexible {
                    reader.tagged_fields(|_reader, tag| match tag {
                        $( $(
                            $tag if ($tagged_versions).contains(&shape.version) => {
                                _reader.field(stringify!($tagged));
                                self.$tagged = Default::default();
                                $crate::kafka::api::message::Wire::read_into(&mut self.$tagged, _reader, shape)?;
                                Ok(true)
                            }
                        )* )?
                        _ => Ok(false),
                    })?;
                }
                Ok(())
            }

            $( fn is_worth_keeping(&self) -> bool { let $this = self; $keep } )?
        }

        /// A nullable structure: a byte before it says whether it is there.
        impl<'a> $crate::kafka::api::message::Wire<'a> for Option<$name $(<$lt>)?> {
            fn read_into(
                &mut self,
                reader: &mut $crate::kafka::wire::Reader<'a>,
                shape: $crate::kafka::api::message::Shape,
            ) -> Result<(), $crate::kafka::wire::DecodeError> {
                if reader.i8()? >= 0 {
                    $crate::kafka::api::message::Wire::read_into(self.insert(Default::default()), reader, shape)?;
                }
                Ok(())
            }
        }
    };
    (@default) => { Default::default() };
    (@default $default:expr) => { $default };
}
pub(crate) use message;

macro_rules! number {
    ($($type:ident)*) => { $(
        impl<'a> Wire<'a> for $type {
            fn read_into(&mut self, reader: &mut Reader<'a>, _: Shape) -> Result<(), DecodeError> {
                *self = reader.$type()?;
                Ok(())
            }
        }
    )* };
}
number!(i8 i16 u16 i32 i64);

impl<'a> Wire<'a> for bool {
    fn read_into(&mut self, reader: &mut Reader<'a>, _: Shape) -> Result<(), DecodeError> {
        *self = reader.i8()? != 0;
        Ok(())
    }
}

impl<'a> Wire<'a> for &'a str {
    fn read_into(&mut self, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError> {
        *self = reader.text(shape.of_text())?.ok_or_else(|| reader.invalid("null where no null may be"))?;
        Ok(())
    }
}

impl<'a> Wire<'a> for Option<&'a str> {
    fn read_into(&mut self, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError> {
        *self = reader.text(shape.of_text())?;
        Ok(())
    }
}

impl<'a> Wire<'a> for Option<TopicId> {
    fn read_into(&mut self, reader: &mut Reader<'a>, _: Shape) -> Result<(), DecodeError> {
        *self = reader.topic_id()?;
        Ok(())
    }
}

/// Records: taken whole, whatever of them was captured.
impl<'a> Wire<'a> for Option<Payload<'a>> {
    fn read_into(&mut self, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError> {
        *self = match reader.length(shape.of_array())? {
            Some(length) => Some(reader.part(length)?),
            None => None,
        };
        Ok(())
    }
}

/// An array; null reads as empty. Nothing is reserved for a count that is only claimed.
impl<'a, T: Wire<'a>> Wire<'a> for Vec<T> {
    fn read_into(&mut self, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError> {
        let count = reader.length(shape.of_array())?.unwrap_or(0);
        for _ in 0..count {
            let mut element = T::default();
            let read = element.read_into(reader, shape);
            if read.is_ok() || element.is_worth_keeping() {
                self.push(element);
            }
            read?;
        }
        Ok(())
    }
}

/// An array whose null means something else than empty.
impl<'a, T: Wire<'a>> Wire<'a> for Option<Vec<T>> {
    fn read_into(&mut self, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError> {
        let Some(count) = reader.length(shape.of_array())? else { return Ok(()) };
        let elements = self.insert(Vec::new());
        for _ in 0..count {
            let mut element = T::default();
            element.read_into(reader, shape)?;
            elements.push(element);
        }
        Ok(())
    }
}

/// Reads a length as `shape` writes those of bytes and arrays.
pub(super) fn array_length(reader: &mut Reader<'_>, shape: Shape) -> Result<Option<usize>, DecodeError> {
    reader.length(shape.of_array())
}

/// Reads text as `shape` writes it.
pub(super) fn text<'a>(reader: &mut Reader<'a>, shape: Shape) -> Result<Option<&'a str>, DecodeError> {
    reader.text(shape.of_text())
}
