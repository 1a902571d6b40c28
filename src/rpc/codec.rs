//! The codec of writes. Their responses are products that are encoded already, so they are sent without a second encoding.

use std::marker::PhantomData;

use bytes::BufMut;
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

use crate::entry::Entry;

/// A product that is already encoded.
#[derive(Debug)]
pub struct Stored(pub Entry);

/// Decodes requests with prost and sends stored bytes unchanged.
#[derive(Debug)]
pub struct StoredCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for StoredCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<U: Message + Default + Send + 'static> Codec for StoredCodec<Stored, U> {
    type Encode = Stored;
    type Decode = U;
    type Encoder = StoredEncoder;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> StoredEncoder {
        StoredEncoder
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstDecoder::new(BufferSettings::default())
    }
}

/// Copies stored bytes into the response.
#[derive(Debug)]
pub struct StoredEncoder;

impl Encoder for StoredEncoder {
    type Item = Stored;
    type Error = Status;

    fn encode(&mut self, item: Stored, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(item.0.product().unwrap_or_default());
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        // Most products fit into 512 bytes; the default of 8 KiB would be allocated for each call.
        BufferSettings::new(512, 32 * 1024)
    }
}
