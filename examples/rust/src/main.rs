//! Computes attention of a real transformer layer on an attnd server, compares it with
//! float64, measures the smallest call, and shows what the error of a wrong request looks like.
//!
//!     attnd-example (HOST:PORT | unix:PATH) FOLDER

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;

use attnd::attention_service_client::AttentionServiceClient;
use attnd::tensor::Payload;
use attnd::{AttentionRequest, AttentionResponse, DataType, Tensor};

mod attnd {
    tonic::include_proto!("attnd.v1");
}

type Client = AttentionServiceClient<Channel>;

/// The error of PyTorch's float32 kernel on the same data.
const ALLOWED_ERROR: f64 = 1.3e-6;
const TIMED_CALLS: usize = 500;

async fn connect(server: &str) -> Result<Client, tonic::transport::Error> {
    // tonic ignores the web proxy that the environment names, and does not retry calls.
    let scheme = if server.starts_with("unix:") { "" } else { "http://" };
    // tonic sends the deadline to the server, which stops computing when it has passed.
    let channel = Endpoint::from_shared(format!("{scheme}{server}"))?
        .timeout(Duration::from_secs(60))
        .connect()
        .await?;
    // By default, tonic refuses answers above 4 MiB. The server has its own limit.
    Ok(Client::new(channel).max_decoding_message_size(usize::MAX))
}

/// Reads a float32 array as a tensor.
fn load_tensor(path: &Path) -> Result<Tensor, Box<dyn Error>> {
    let file = npyz::NpyFile::new(std::io::BufReader::new(std::fs::File::open(path)?))?;
    let shape = file.shape().iter().map(|&extent| extent as i64).collect();
    Ok(tensor(shape, &file.into_vec::<f32>()?))
}

fn tensor(shape: Vec<i64>, elements: &[f32]) -> Tensor {
    let bytes = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
    Tensor { dtype: DataType::F32 as i32, shape, payload: Some(Payload::Data(bytes)) }
}

fn elements(tensor: &Tensor) -> Vec<f32> {
    // The answer has the same kind of payload as the first tensor of the request.
    let Some(Payload::Data(bytes)) = &tensor.payload else { return Vec::new() };
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

/// Returns the largest difference; infinite for a NaN, or if the lengths differ.
fn worst_error(got: &[f32], expected: &[f64]) -> f64 {
    if got.len() != expected.len() {
        return f64::INFINITY;
    }
    let errors = got.iter().zip(expected).map(|(&x, y)| (f64::from(x) - y).abs());
    errors.fold(0.0, |worst, e| if e.is_nan() { f64::INFINITY } else { worst.max(e) })
}

/// Returns whether the answer is as exact as it should be.
async fn real_attention(client: &mut Client, folder: &Path) -> Result<bool, Box<dyn Error>> {
    let load = |name| load_tensor(&folder.join(name)).map(Some);
    let request = AttentionRequest {
        query: load("query.npy")?,
        key: load("key.npy")?,
        value: load("value.npy")?,
        options: None,
    };
    let start = Instant::now();
    let AttentionResponse { output, stats, .. } = client.attention(request).await?.into_inner();
    let took = start.elapsed();
    let (output, stats) = (output.unwrap_or_default(), stats.unwrap_or_default());
    let computed = Duration::try_from(stats.compute_time.unwrap_or_default())?;
    println!(
        "attention     {:?} by {} {} on {} thread(s): {computed:.2?} of {took:.2?}",
        output.shape, stats.isa, stats.kernel, stats.threads
    );

    let expected = std::fs::read(folder.join("expected.npy"))?;
    let expected = npyz::NpyFile::new(&expected[..])?.into_vec::<f64>()?;
    let worst = worst_error(&elements(&output), &expected);
    println!("worst error   {worst:.3e}, allowed {ALLOWED_ERROR:.1e}");
    Ok(worst <= ALLOWED_ERROR)
}

/// Prints the p50 of a call that only goes to the server and back.
async fn smallest_call(client: &mut Client) -> Result<(), tonic::Status> {
    let one = || Some(tensor(vec![1, 1], &[1.0]));
    let request = AttentionRequest { query: one(), key: one(), value: one(), options: None };
    let mut times = Vec::with_capacity(TIMED_CALLS);
    for _ in 0..TIMED_CALLS {
        let start = Instant::now();
        client.attention(request.clone()).await?;
        times.push(start.elapsed());
    }
    times.sort();
    let p50 = times[TIMED_CALLS / 2].as_secs_f64() * 1e6;
    println!("smallest call p50 {p50:.1} us of {TIMED_CALLS}");
    Ok(())
}

/// Sends a key with the wrong head_dim, and prints the error, which names the field.
async fn refused_call(client: &mut Client) -> Result<(), Box<dyn Error>> {
    let request = AttentionRequest {
        query: Some(tensor(vec![1, 2], &[1.0; 2])),
        key: Some(tensor(vec![1, 3], &[1.0; 3])),
        value: Some(tensor(vec![1, 2], &[1.0; 2])),
        options: None,
    };
    let Err(status) = client.attention(request).await else {
        return Err("a key of another head_dim was accepted".into());
    };
    let details = status.get_error_details();
    let reason = details.error_info().map_or("", |info| &info.reason);
    for violation in details.bad_request().iter().flat_map(|bad| &bad.field_violations) {
        println!("refused       {:?}, {reason} in {}", status.code(), violation.field);
        println!("              {}", violation.description);
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [server, folder] = &arguments[..] else {
        return Err("usage: attnd-example (HOST:PORT | unix:PATH) FOLDER".into());
    };
    let mut client = connect(server).await?;
    let exact = real_attention(&mut client, Path::new(folder)).await?;
    smallest_call(&mut client).await?;
    refused_call(&mut client).await?;
    exact.then_some(()).ok_or("the answer is off by more than is allowed".into())
}
