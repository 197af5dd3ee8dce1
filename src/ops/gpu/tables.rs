//! Tables that tell a launch's blocks their work: they depend on sizes alone, so they are made and sent to a device once, not
//! in every step.

use anyhow::Result;
use candle_core::{Device, Tensor};
use std::sync::{Mutex, PoisonError};

/// Most tables that are kept: a run has three, and a second run of the same process others.
const MOST: usize = 8;

struct Table {
    what: &'static str,
    sizes: Vec<usize>,
    numbers: Tensor,
}

/// What `make` gives for these sizes, numbers and how many there are in a row, as u32 [rows, width] on the device.
///
/// # Errors
/// A number beyond u32, or no memory on the device.
pub fn kept(
    what: &'static str,
    sizes: &[usize],
    device: &Device,
    make: impl FnOnce(&[usize]) -> (Vec<usize>, usize),
) -> Result<Tensor> {
    static TABLES: Mutex<Vec<Table>> = Mutex::new(vec![]);
    kept_in(&TABLES, what, sizes, device, make)
}

fn kept_in(
    tables: &Mutex<Vec<Table>>,
    what: &'static str,
    sizes: &[usize],
    device: &Device,
    make: impl FnOnce(&[usize]) -> (Vec<usize>, usize),
) -> Result<Tensor> {
    let mut tables = tables.lock().unwrap_or_else(PoisonError::into_inner);
    let is_it =
        |table: &Table| table.what == what && table.sizes == sizes && table.numbers.device().same_device(device);
    if let Some(table) = tables.iter().find(|table| is_it(table)) {
        return Ok(table.numbers.clone());
    }
    let (numbers, width) = make(sizes);
    let rows = numbers.len() / width;
    let numbers = numbers.into_iter().map(u32::try_from).collect::<Result<Vec<u32>, _>>()?;
    let numbers = Tensor::from_vec(numbers, (rows, width), device)?;
    if tables.len() == MOST {
        tables.remove(0);
    }
    tables.push(Table { what, sizes: sizes.to_vec(), numbers: numbers.clone() });
    Ok(numbers)
}

/// (tensor, chunk of it) of each block, if tensors have these numbers of chunks: [blocks, 2].
pub fn chunks(counts: &[usize], device: &Device) -> Result<Tensor> {
    kept("chunks", counts, device, |counts| {
        let of = |(number, &count): (usize, &usize)| (0..count).flat_map(move |chunk| [number, chunk]);
        (counts.iter().enumerate().flat_map(of).collect(), 2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_made_once_for_its_sizes() {
        let tables = Mutex::new(vec![]);
        let made = |sizes: &[usize]| {
            let mut again = false;
            let table = kept_in(&tables, "test", sizes, &Device::Cpu, |sizes| {
                again = true;
                (sizes.to_vec(), 1)
            });
            (table.unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap(), again)
        };
        assert_eq!(made(&[1, 2]), (vec![1, 2], true));
        assert_eq!(made(&[1, 2]), (vec![1, 2], false));
        assert_eq!(made(&[2, 1]), (vec![2, 1], true));
        assert!(kept("test", &[usize::MAX], &Device::Cpu, |sizes| (sizes.to_vec(), 1)).is_err());
        let table = chunks(&[2, 0, 1], &Device::Cpu).unwrap().to_vec2::<u32>().unwrap();
        assert_eq!(table, [[0, 0], [0, 1], [2, 0]]);
    }
}
