//! The message that answers BatchGetProducts.

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, int64};

use crate::catalog::Answer;
use crate::entry::{PREFIX, prefix};
use crate::product::ProductId;

/// The field numbers of `BatchGetProductsResponse`.
const PRODUCTS: u32 = 1;
const NOT_FOUND_IDS: u32 = 2;
const UNREADABLE_IDS: u32 = 3;
/// Most bytes of the field key and the length in front of a product in a batch.
const KEY_AND_LENGTH: usize = 6;

/// Upper bound of the size of a batch's message, its prefix included.
#[inline]
pub(super) fn max_bytes(answers: &[Option<Answer>]) -> usize {
    // An absent product is its id, of ten bytes at most, which fits PREFIX + KEY_AND_LENGTH.
    let frame =
        |answer: &Option<Answer>| answer.as_ref().map_or(0, |answer| answer.entry.frame().len());
    let length = |answer| frame(answer).max(PREFIX) + KEY_AND_LENGTH;
    PREFIX + 2 * KEY_AND_LENGTH + answers.iter().map(length).sum::<usize>()
}

/// The message of a batch, concatenated from the stored bytes of its products.
#[inline]
pub(super) fn message(ids: &[ProductId], answers: &[Option<Answer>]) -> Vec<u8> {
    let mut message = Vec::with_capacity(max_bytes(answers));
    message.put_bytes(0, PREFIX);
    let (mut absent, mut unreadable) = (Vec::new(), Vec::new());
    for (id, answer) in ids.iter().zip(answers) {
        let Some(answer) = answer else {
            unreadable.push(id.get());
            continue;
        };
        let Some(product) = answer.entry.product() else {
            absent.push(id.get());
            continue;
        };
        encode_key(PRODUCTS, WireType::LengthDelimited, &mut message);
        encode_varint(product.len() as u64, &mut message);
        message.put_slice(product);
    }
    int64::encode_packed(NOT_FOUND_IDS, &absent, &mut message);
    int64::encode_packed(UNREADABLE_IDS, &unreadable, &mut message);
    let length = message.len() - PREFIX;
    message[..PREFIX].copy_from_slice(&prefix(length));
    message
}
