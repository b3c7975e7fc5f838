#include "bench/serving_bars.h"

#include <optional>
#include <string>

namespace attnd::bench {
namespace {

class Finder {
 public:
  explicit Finder(const std::vector<Json>& records) : records_(records) {}

  // Returns `key` of the first record with this name and number of clients that
  // ran beside this case, or nothing if there is no such record or no number.
  std::optional<double> Find(const std::string& name, const std::string& beside,
                             const std::string& transport,
                             const std::string& key, int clients = 1) const {
    for (const Json& r : records_) {
      if (r["name"] == name && r["case"] == beside &&
          r["transport"] == transport && r["clients"] == clients) {
        if (!r.contains(key) || !r[key].is_number()) return std::nullopt;
        return r[key].get<double>();
      }
    }
    return std::nullopt;
  }

 private:
  const std::vector<Json>& records_;
};

}  // namespace

std::vector<Verdict> JudgeServing(const std::vector<Json>& records) {
  const Finder finder(records);
  std::vector<Verdict> verdicts;
  using Number = std::optional<double>;
  // Judges the ratio of two numbers, if both exist.
  const auto judge = [&](const std::string& bar, const std::string& transport,
                         Number over, Number under, Number at_least,
                         Number at_most) {
    if (!over || !under || *under <= 0) return;
    verdicts.push_back({.bar = bar,
                        .transport = transport,
                        .measured = *over / *under,
                        .at_least = at_least,
                        .at_most = at_most});
  };
  const auto sum = [](Number a, Number b) -> Number {
    if (!a || !b) return std::nullopt;
    return *a + *b;
  };
  const std::string rate = "payload_gbytes_per_s";
  const std::vector<std::string> payloads = {"payload_1_mib", "payload_4_mib",
                                             "payload_16_mib"};
  for (const std::string transport : {"tcp", "unix"}) {
    judge("smallest call: time / time of a gRPC echo of 1 KiB", transport,
          finder.Find("smallest", "smallest", transport, "p50_us"),
          finder.Find("grpc_echo_1_kib", "smallest", transport, "p50_us"), {},
          1.15);
    judge("smallest call, 16 callers: rate / rate of a gRPC echo of 1 KiB",
          transport, finder.Find("smallest", "smallest", transport, "rps", 16),
          finder.Find("grpc_echo_1_kib", "smallest", transport, "rps", 16), 0.9,
          {});
    judge("prefill: time of the call / time of its computation", transport,
          finder.Find("prefill", "prefill", transport, "overhead_ratio"), 1, {},
          1.05);
    for (const std::string& payload : payloads) {
      const Number own = finder.Find(payload, payload, transport, rate);
      judge(payload + ": rate / rate of plain sockets", transport, own,
            finder.Find("socket_copy", payload, transport, rate),
            transport == "tcp" ? 0.70 : 0.90, {});
      judge(payload + ": rate / rate of a protobuf echo", transport, own,
            finder.Find("grpc_echo_protobuf", payload, transport, rate), 2, {});
    }
  }
  judge("short: time / (time of its computation + of a gRPC echo of its bytes)",
        "unix", finder.Find("short", "short", "unix", "p50_us"),
        sum(finder.Find("short", "short", "unix", "core_p50_us"),
            finder.Find("grpc_echo", "short", "unix", "p50_us")),
        {}, 1.3);
  // These bars limit the overhead of a call in shared memory, for each size of
  // its tensors.
  for (const std::string transport : {"tcp", "unix"}) {
    const auto overhead = [&](const std::string& name) -> Number {
      const Number rpc = finder.Find(name, name, transport, "p50_us");
      const Number core = finder.Find(name, name, transport, "core_p50_us");
      if (!rpc || !core) return std::nullopt;
      return *rpc - *core;
    };
    for (const std::string name :
         {"shared_16_kib", "shared_1_mib", "shared_16_mib", "shared_64_mib",
          "shared_256_mib"}) {
      judge(name + ": overhead / time of a gRPC echo of 1 KiB", transport,
            overhead(name),
            finder.Find("grpc_echo_1_kib", name, transport, "p50_us"), {}, 1.3);
    }
    judge("shared memory: overhead with 256 MiB / with 16 KiB", transport,
          overhead("shared_256_mib"), overhead("shared_16_kib"), {}, 1.2);
    judge("stream_64_mib: rate / rate of payload_16_mib", transport,
          finder.Find("stream_64_mib", "stream_64_mib", transport, rate),
          finder.Find("payload_16_mib", "stream_64_mib", transport, rate), 1,
          {});
  }
  for (const std::string& payload : payloads) {
    judge(payload + ": rate over a unix socket / over TCP", "unix",
          finder.Find(payload, payload, "unix", rate),
          finder.Find(payload, payload, "tcp", rate), 1, {});
  }
  const auto memory = [&](const std::string& name, const std::string& key) {
    return finder.Find(name, "memory", "tcp", key);
  };
  judge("64 MiB per tensor: peak memory / estimate", "tcp",
        memory("memory_peak", "peak_bytes"),
        memory("memory_peak", "estimate_bytes"), 0.95, 1);
  judge("64 MiB per tensor, shared memory: peak memory / estimate", "tcp",
        memory("memory_peak_shared", "peak_bytes"),
        memory("memory_peak_shared", "estimate_bytes"), 0.95, 1);
  judge("64 MiB per tensor, streamed: peak memory / estimate", "tcp",
        memory("memory_peak_stream", "peak_bytes"),
        memory("memory_peak_stream", "estimate_bytes"), 0.95, 1);
  judge("resident memory after 1,000 calls / after 100 calls", "tcp",
        memory("memory_flat", "resident_1000_bytes"),
        memory("memory_flat", "resident_100_bytes"), 0.95, 1.05);
  return verdicts;
}

}  // namespace attnd::bench
