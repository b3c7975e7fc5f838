#include "bench/serving_case.h"

#include <initializer_list>
#include <random>
#include <span>
#include <stdexcept>
#include <utility>

namespace attnd::bench {
namespace {

constexpr int64_t kMaxMessageBytes = int64_t{256} << 20;
constexpr int64_t kStreamMessageBytes = int64_t{4} << 20;

int64_t Elements(const std::vector<int64_t>& shape) {
  return client::ElementCount(shape).value();
}

// Repeats a list of random numbers, because drawing hundreds of MiB of them
// would take longer than the measurement.
void Fill(std::span<float> values, std::mt19937& rng) {
  constexpr size_t kDrawn = 1 << 20;
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = i < kDrawn ? normal(rng) : values[i - kDrawn];
  }
}

void Check(const absl::Status& status, const std::string& what) {
  if (!status.ok()) {
    throw std::runtime_error(what + ": " + std::string(status.message()));
  }
}

}  // namespace

int64_t ServingCase::request_bytes() const {
  return SizeOf(DataType::kF32) *
         (Elements(QueryShape()) + 2 * Elements(KeyShape()));
}

int64_t ServingCase::reply_bytes() const {
  return SizeOf(DataType::kF32) * Elements(QueryShape());
}

std::vector<ServingCase> ServingCases() {
  const auto square = [](std::string name, int64_t heads, int64_t len,
                         int64_t head_dim, int max_clients) {
    return ServingCase{.name = std::move(name),
                       .q_heads = heads,
                       .kv_heads = heads,
                       .q_len = len,
                       .kv_len = len,
                       .head_dim = head_dim,
                       .max_clients = max_clients};
  };
  return {square("smallest", 1, 16, 16, 16),
          square("short", 8, 128, 64, 16),
          square("medium", 8, 1024, 64, 16),
          {.name = "decode",
           .q_heads = 32,
           .kv_heads = 8,
           .q_len = 1,
           .kv_len = 4096,
           .head_dim = 128,
           .max_clients = 4},
          square("payload_1_mib", 64, 64, 64, 16),
          square("payload_4_mib", 256, 64, 64, 16),
          LargestInlineCase(),
          {.name = "stream_64_mib",
           .q_heads = 4096,
           .kv_heads = 4096,
           .q_len = 64,
           .kv_len = 64,
           .head_dim = 64,
           .max_clients = 1,
           .streamed = true},
          square("prefill", 8, 4096, 128, 1)};
}

std::vector<ServingCase> SharedMemoryCases() {
  std::vector<ServingCase> cases;
  for (const auto& [name, mib] :
       std::initializer_list<std::pair<const char*, double>>{
           {"shared_16_kib", 1.0 / 64},
           {"shared_1_mib", 1},
           {"shared_16_mib", 16},
           {"shared_64_mib", 64},
           {"shared_256_mib", 256}}) {
    cases.push_back({.name = name,
                     .q_len = 1,
                     .kv_len = static_cast<int64_t>(mib * (1 << 20)) / (64 * 4),
                     .seen_keys = 64});
  }
  for (const ServingCase& shape : ServingCases()) {
    if (shape.name != "payload_16_mib" && shape.name != "prefill") continue;
    cases.push_back(shape);
    cases.back().name = "shared_" + shape.name;
  }
  for (ServingCase& shape : cases) {
    shape.shared_memory = true;
    shape.max_clients = 1;
  }
  return cases;
}

ServingCase LargestInlineCase() {
  return {.name = "payload_16_mib",
          .q_heads = 1024,
          .kv_heads = 1024,
          .q_len = 64,
          .kv_len = 64,
          .head_dim = 64,
          .max_clients = 4};
}

Workload::Workload(const ServingCase& shape, int slots,
                   const std::string& shm_socket)
    : shape_(shape),
      problem_(AttentionProblem::Create({.shape = shape.QueryShape()},
                                        {.shape = shape.KeyShape()},
                                        {.shape = shape.KeyShape()},
                                        {.causal = Options().causal,
                                         .key_lengths = Options().key_lengths})
                   .value()) {
  const int64_t q_count = Elements(shape.QueryShape());
  const int64_t kv_count = Elements(shape.KeyShape());
  if (shape.shared_memory) {
    constexpr int64_t kPadding = 64;  // before the next part
    auto region = client::RegisterRegion(
        shm_socket,
        (2 * kv_count + (slots + 1) * q_count) * SizeOf(DataType::kF32) +
            (slots + 3) * kPadding);
    Check(region.status(), shape.name);
    region_ = *std::move(region);
  }
  std::mt19937 rng(1);
  query_ = Allocate(q_count);
  key_ = Allocate(kv_count);
  value_ = Allocate(kv_count);
  for (const client::Elements* input : {&query_, &key_, &value_}) {
    Fill(input->floats(), rng);
  }
  for (int i = 0; i < slots; ++i) outputs_.push_back(Allocate(q_count));
}

client::Elements Workload::Allocate(int64_t count) {
  if (region_) {
    return region_->Allocate(client::DataType::kF32, count).value();
  }
  const auto size = static_cast<size_t>(count);
  own_memory_->push_back(std::make_unique_for_overwrite<float[]>(size));
  return std::span(own_memory_->back().get(), size);
}

client::AttentionOutputs Workload::Outputs(int slot) const {
  return {.output = outputs_[static_cast<size_t>(slot)]};
}

std::span<const float> Workload::Output(int slot) const {
  return outputs_[static_cast<size_t>(slot)].floats();
}

client::AttentionInputs Workload::Inputs() const {
  const auto owned = [this](const client::Elements& elements) {
    return client::ConstElements(elements).OwnedBy(own_memory_);
  };
  return {.query = {owned(query_), shape_.QueryShape()},
          .key = {owned(key_), shape_.KeyShape()},
          .value = {owned(value_), shape_.KeyShape()}};
}

client::AttentionOptions Workload::Options() const {
  client::AttentionOptions options;
  if (shape_.causal) options.causal = Causal::kTopLeft;
  if (shape_.seen_keys > 0) {
    options.key_lengths.assign(static_cast<size_t>(shape_.batch),
                               shape_.seen_keys);
  }
  return options;
}

void Workload::Call(const client::AttentionClient& client, int slot) {
  const auto reply = client.Attention(Inputs(), Outputs(slot), Options());
  Check(reply.status(), shape_.name);
}

void Workload::Run(AttentionEngine& engine, int slot) {
  const auto stats = engine.Run(
      problem_,
      {.query = query_.floats().data(),
       .key = key_.floats().data(),
       .value = value_.floats().data(),
       .output = outputs_[static_cast<size_t>(slot)].floats().data()});
  Check(stats.status(), shape_.name);
}

void Workload::CallAsync(const client::AttentionClient& client, int slot,
                         Done done) {
  client.AttentionAsync(Inputs(), Outputs(slot), Options(), std::move(done));
}

std::vector<client::AttentionClient> Connect(const std::string& target,
                                             int count, bool streamed) {
  std::vector<client::AttentionClient> clients;
  clients.reserve(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    // gRPC lets equal channels share a connection, so the clients have
    // different limits.
    clients.emplace_back(client::ClientOptions{
        .target = target,
        .max_message_bytes =
            (streamed ? kStreamMessageBytes : kMaxMessageBytes) + i,
        .retry = {.max_attempts = 1}});  // a refusal counts as a result
  }
  return clients;
}

Json ServingRecord(const ServingCase& shape, const std::string& name,
                   const std::string& transport, int clients) {
  return {{"name", name},
          {"transport", transport},
          {"batch", shape.batch},
          {"q_heads", shape.q_heads},
          {"kv_heads", shape.kv_heads},
          {"q_len", shape.q_len},
          {"kv_len", shape.kv_len},
          {"head_dim", shape.head_dim},
          {"dtype", "f32"},
          {"clients", clients},
          {"rps", nullptr},
          {"p50_us", nullptr},
          {"p99_us", nullptr},
          {"core_p50_us", nullptr},
          {"overhead_ratio", nullptr},
          {"case", shape.name}};
}

}  // namespace attnd::bench
