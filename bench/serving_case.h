// The attention calls that the serving bench makes: shapes, tensors, a call
// through the client library and the same one on an engine in this process.
#ifndef ATTND_BENCH_SERVING_CASE_H_
#define ATTND_BENCH_SERVING_CASE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/records.h"
#include "client/attention_client.h"
#include "client/shared_region.h"
#include "core/attention_engine.h"

namespace attnd::bench {

struct ServingCase {
  std::string name;
  int64_t batch = 1;
  int64_t q_heads = 1;
  int64_t kv_heads = 1;
  int64_t q_len = 0;
  int64_t kv_len = 0;
  int64_t head_dim = 64;
  int max_clients = 16;        // where more would only measure patience
  bool shared_memory = false;  // tensors lie in a region that the server shares
  int64_t seen_keys = 0;       // the rest is hidden by length; 0 = all are seen
  bool streamed = false;       // in chunks, whatever fits a message

  std::vector<int64_t> QueryShape() const {
    return {batch, q_heads, q_len, head_dim};
  }
  std::vector<int64_t> KeyShape() const {
    return {batch, kv_heads, kv_len, head_dim};
  }
  int64_t request_bytes() const;  // of the tensors, without the envelope
  int64_t reply_bytes() const;
};

// Small to large, payloads of 1, 4 and 16 MiB a tensor, few queries over many
// keys, and a stream.
std::vector<ServingCase> ServingCases();
// That of payloads of 16 MiB, beside which a stream is judged.
ServingCase LargestInlineCase();

// In shared memory: of keys and values of up to 256 MiB each, 64 are seen, so
// that what a call costs beside computing stands out whatever it carries; and
// two of the cases above.
std::vector<ServingCase> SharedMemoryCases();

// One case's tensors, in memory of the caller, or in a region registered on
// `shm_socket` where the case says so. Calls may run at once where each has a
// `slot` of its own. They throw std::runtime_error where they fail.
class Workload {
 public:
  Workload(const ServingCase& shape, int slots,
           const std::string& shm_socket = "");

  const ServingCase& shape() const { return shape_; }

  void Call(const client::AttentionClient& client, int slot);
  void Run(AttentionEngine& engine, int slot);
  using Done = client::AttentionClient::Done;
  void CallAsync(const client::AttentionClient& client, int slot, Done done);

 private:
  client::AttentionInputs Inputs() const;
  client::AttentionOutputs Outputs(int slot) const;
  client::AttentionOptions Options() const;
  client::Elements Allocate(int64_t count);

  ServingCase shape_;
  AttentionProblem problem_;
  std::optional<client::SharedRegion> region_;
  // Shared with calls, so that they send it from where it lies.
  using Memory = std::vector<std::unique_ptr<float[]>>;
  const std::shared_ptr<Memory> own_memory_ = std::make_shared<Memory>();
  client::Elements query_, key_, value_;
  // By slot; own memory is not touched before its first call.
  std::vector<client::Elements> outputs_;
};

// A server's clients, each with a connection of its own; those of a `streamed`
// case take no large message, so they stream.
std::vector<client::AttentionClient> Connect(const std::string& target,
                                             int count, bool streamed = false);

// The keys that every record of a serving run has; null where they do not
// apply. `case` is the shape's name: yardsticks have the shape that they ran
// beside.
Json ServingRecord(const ServingCase& shape, const std::string& name,
                   const std::string& transport, int clients);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_SERVING_CASE_H_
