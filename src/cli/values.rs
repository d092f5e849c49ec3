//! How the command line spells choices, and what help says of each. The rooms that own the choices know no command line.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::backend::Implementation;
use crate::record::Form;

impl ValueEnum for Implementation {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Implementation::Etcd2 => "etcd, version 3 of its protocol",
            Implementation::Zk2 => "ZooKeeper, 3.6 or newer",
            Implementation::Consul => "Consul",
            Implementation::Memory => "Kept in this process: for trying and testing",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

impl ValueEnum for Form {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Form::Raw => "The stored bytes",
            Form::Text => "Protobuf text format",
            Form::Json => "Proto3 JSON",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}
