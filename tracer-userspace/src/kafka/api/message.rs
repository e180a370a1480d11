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

    /// The value as Kafka's own JSON form of messages shows it, to hold it against what Kafka wrote.
    #[cfg(test)]
    fn show(&self, shape: Shape) -> serde_json::Value;
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

            #[cfg(test)]
            fn show(&self, shape: $crate::kafka::api::message::Shape) -> serde_json::Value {
                let mut fields = serde_json::Map::new();
                $(
                    if ($versions).contains(&shape.version) {
                        fields.insert(stringify!($field).to_owned(), $crate::kafka::api::message::Wire::show(&self.$field, shape));
                    }
                )*
                $( $(
                    if ($tagged_versions).contains(&shape.version) && self.$tagged != Self::default().$tagged {
                        fields.insert(stringify!($tagged).to_owned(), $crate::kafka::api::message::Wire::show(&self.$tagged, shape));
                    }
                )* )?
                serde_json::Value::Object(fields)
            }
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

            #[cfg(test)]
            fn show(&self, shape: $crate::kafka::api::message::Shape) -> serde_json::Value {
                self.as_ref().map_or(serde_json::Value::Null, |it| $crate::kafka::api::message::Wire::show(it, shape))
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

            #[cfg(test)]
            fn show(&self, _: Shape) -> serde_json::Value {
                (*self).into()
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

    #[cfg(test)]
    fn show(&self, _: Shape) -> serde_json::Value {
        (*self).into()
    }
}

impl<'a> Wire<'a> for &'a str {
    fn read_into(&mut self, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError> {
        *self = reader.text(shape.of_text())?.ok_or_else(|| reader.invalid("null where no null may be"))?;
        Ok(())
    }

    #[cfg(test)]
    fn show(&self, _: Shape) -> serde_json::Value {
        (*self).into()
    }
}

impl<'a> Wire<'a> for Option<&'a str> {
    fn read_into(&mut self, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError> {
        *self = reader.text(shape.of_text())?;
        Ok(())
    }

    #[cfg(test)]
    fn show(&self, _: Shape) -> serde_json::Value {
        (*self).into()
    }
}

impl<'a> Wire<'a> for Option<TopicId> {
    fn read_into(&mut self, reader: &mut Reader<'a>, _: Shape) -> Result<(), DecodeError> {
        *self = reader.topic_id()?;
        Ok(())
    }

    #[cfg(test)]
    fn show(&self, _: Shape) -> serde_json::Value {
        self.map_or("AAAAAAAAAAAAAAAAAAAAAA".to_owned(), |id| id.to_string()).into()
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

    #[cfg(test)]
    fn show(&self, _: Shape) -> serde_json::Value {
        self.map(|records| records.bytes.to_vec()).into()
    }
}

/// An array; null reads as empty. Nothing is reserved for a count that is only claimed.
impl<'a, T: Wire<'a>> Wire<'a> for Vec<T> {
    fn read_into(&mut self, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError> {
        let count = reader.length(shape.of_array())?.unwrap_or(0);
        for _ in 0..count {
            reader.spend(size_of::<T>())?;
            let mut element = T::default();
            let read = element.read_into(reader, shape);
            if read.is_ok() || element.is_worth_keeping() {
                self.push(element);
            }
            read?;
        }
        Ok(())
    }

    #[cfg(test)]
    fn show(&self, shape: Shape) -> serde_json::Value {
        self.iter().map(|element| element.show(shape)).collect()
    }
}

/// An array whose null means something else than empty.
impl<'a, T: Wire<'a>> Wire<'a> for Option<Vec<T>> {
    fn read_into(&mut self, reader: &mut Reader<'a>, shape: Shape) -> Result<(), DecodeError> {
        let Some(count) = reader.length(shape.of_array())? else { return Ok(()) };
        let elements = self.insert(Vec::new());
        for _ in 0..count {
            reader.spend(size_of::<T>())?;
            let mut element = T::default();
            element.read_into(reader, shape)?;
            elements.push(element);
        }
        Ok(())
    }

    #[cfg(test)]
    fn show(&self, shape: Shape) -> serde_json::Value {
        self.as_ref().map_or(serde_json::Value::Null, |elements| elements.show(shape))
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
