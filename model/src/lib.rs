//! A checker that tries everything that can happen in a model, in every order.

pub mod checker;
mod fold_hasher;
