#include "client/attnctl/deployment_flags.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "client/attnctl/call_rate.h"
#include "client/attnctl/container_limits.h"
#include "client/attnctl/offline_estimate.h"
#include "client/attnctl/option_flags.h"
#include "core/machine.h"
#include "cost/capacity.h"
#include "wire/message_sizes.h"

namespace attnd::attnctl {
namespace {

// More clients do not make a server answer more calls per second.
constexpr int64_t kMaxCallers = 8;

// What --gigabytes-per-second is without the flag.
constexpr double kAssumedGigabytesPerSecond = 1;

const std::map<std::string, LimitsFormat>& LimitsFormats() {
  static const auto* const kFormats = new std::map<std::string, LimitsFormat>{
      {"kubernetes", LimitsFormat::kKubernetes},
      {"compose", LimitsFormat::kCompose},
      {"flags", LimitsFormat::kFlags}};
  return *kFormats;
}

// The server for which a deployment is planned.
struct Pod {
  int64_t threads = 0;
  // How many of the calls it can hold at the same time, as far as is known.
  int64_t max_concurrency = std::numeric_limits<int64_t>::max();
  // The size of the largest message.
  int64_t max_message_bytes = kMaxMessageLimitBytes;
};

// What --rate finds out.
struct RatePlan {
  Pod pod;
  CallTime time;
  std::string source;  // where `time` comes from
  CapacityPlan capacity;
};

// Shows how far a measurement is. On a terminal, it redraws one line.
// Elsewhere, it prints one line for each phase.
class MeasurementProgress {
 public:
  explicit MeasurementProgress(Session& session) : session_(session) {}
  ~MeasurementProgress() {
    if (session_.screen.err_is_terminal()) session_.screen.Redraw("");
  }
  MeasurementProgress(const MeasurementProgress&) = delete;
  MeasurementProgress& operator=(const MeasurementProgress&) = delete;

  void Show(absl::string_view phase, double fraction) {
    const std::string line =
        absl::StrCat("attnctl estimate: measures calls: ", phase);
    const bool is_new = shown_.emplace(phase).second;
    if (session_.screen.err_is_terminal()) {
      session_.screen.Redraw(
          absl::StrFormat("%s %3.0f %%", line, fraction * 100));
    } else if (is_new) {
      session_.screen.PrintError(line);
    }
  }

 private:
  Session& session_;
  std::set<std::string, std::less<>> shown_;
};

CLI::Validator Positive() {
  return {[](const std::string& text) {
            double number = 0;
            return absl::SimpleAtod(text, &number) &&
                           !(number > 0 && std::isfinite(number))
                       ? absl::StrCat("expected a number above 0, got ", text)
                       : std::string();
          },
          ""};
}

absl::StatusOr<Pod> PodOf(const DeploymentFlags& flags,
                          const client::MemoryEstimateOptions& options,
                          const client::MemoryEstimate& estimate, bool offline,
                          Session& session) {
  Pod pod{.threads = options.threads};
  if (offline) {
    if (pod.threads == 0) pod.threads = AvailableThreads();
    return pod;
  }
  const auto info = session.Connect().GetServerInfo();
  if (!info.ok()) return info.status();
  // Measured calls are computed by the threads of the server.
  if (pod.threads == 0 || flags.measures()) pod.threads = info->threads;
  pod.max_concurrency = info->memory_budget_bytes /
                        std::max<int64_t>(estimate.peak_per_request_bytes, 1);
  if (info->load.max_in_flight > 0) {
    pod.max_concurrency =
        std::min(pod.max_concurrency, info->load.max_in_flight);
  }
  pod.max_message_bytes =
      std::min(info->max_receive_message_bytes, info->max_send_message_bytes);
  return pod;
}

// Returns the time of calls from a rate of operations, in 10^9 per second. The
// server computes and moves tensors with the same processors.
CallTime TimeOfRates(double gflops, double gigabytes_per_second,
                     const client::MemoryEstimateOptions& options,
                     const client::MemoryEstimate& estimate) {
  double seconds = static_cast<double>(estimate.flops) / gflops / 1e9;
  if (options.transport != client::Transport::kSharedMemory) {
    seconds += (static_cast<double>(estimate.input_bytes) +
                static_cast<double>(estimate.output_bytes)) /
               gigabytes_per_second / 1e9;
  }
  return {.busy_s = seconds, .alone_s = seconds};
}

absl::StatusOr<CallRate> MeasureOnServer(
    const DeploymentFlags& flags, const client::MemoryEstimateOptions& options,
    const client::MemoryEstimate& estimate, int64_t callers, Session& session) {
  // A client streams what is larger than its limit.
  const int64_t limit = options.transport == client::Transport::kStream
                            ? kMinMessageLimitBytes
                            : std::max(session.max_message_bytes,
                                       estimate.required_message_bytes);
  const int64_t before = session.max_message_bytes;
  std::vector<client::AttentionClient> clients;
  for (int64_t i = 0; i < callers; ++i) {
    // Clients with equal limits would share a connection.
    session.max_message_bytes = limit < kMaxMessageLimitBytes - callers
                                    ? limit + i
                                    : kMaxMessageLimitBytes - i;
    clients.push_back(session.Connect());
  }
  session.max_message_bytes = before;
  MeasurementProgress progress(session);
  return MeasureCallRate(options, clients, flags.shm_socket,
                         [&](absl::string_view phase, double fraction) {
                           progress.Show(phase, fraction);
                         });
}

// Prints an error in the flags.
ExitCode FlagError(absl::string_view message, Session& session) {
  session.screen.PrintError(absl::StrCat("attnctl: ", message));
  return kUsage;
}

// Sets the time of a call and its source in `plan`.
ExitCode FindCallTime(const DeploymentFlags& flags,
                      const client::MemoryEstimateOptions& options,
                      const client::MemoryEstimate& estimate, bool offline,
                      RatePlan& plan, Session& session) {
  std::optional<double> gflops = flags.gflops;
  plan.source = "--gflops";
  if (flags.bench_gflops) {
    gflops = flags.bench_gflops;
    plan.source = "--bench";
  }
  if (gflops) {
    plan.time = TimeOfRates(
        *gflops,
        flags.gigabytes_per_second.value_or(kAssumedGigabytesPerSecond),
        options, estimate);
    absl::StrAppendFormat(&plan.source, ": %.3g GFLOP/s", *gflops);
    if (options.transport != client::Transport::kSharedMemory) {
      absl::StrAppend(
          &plan.source, ", tensors moved at ",
          flags.gigabytes_per_second
              ? absl::StrFormat("%.3g GB/s", *flags.gigabytes_per_second)
              : absl::StrFormat("%.3g GB/s (assumed: --gigabytes-per-second)",
                                kAssumedGigabytesPerSecond));
    }
    return kOk;
  }
  if (offline) {
    return FlagError(
        "--rate: with --offline, attnctl cannot measure how fast a server is; "
        "add --gflops=N or --bench=FILE, or leave out --offline",
        session);
  }
  if (options.transport == client::Transport::kSharedMemory &&
      flags.shm_socket.empty()) {
    return FlagError(
        "--shm-socket: expected the socket of the server's --shm-socket, to "
        "measure calls with --transport=shared-memory",
        session);
  }
  const int64_t callers = std::min(kMaxCallers, plan.pod.max_concurrency);
  const auto rate = MeasureOnServer(flags, options, estimate, callers, session);
  if (!rate.ok()) return session.CallError(rate.status());
  plan.time = {.busy_s = 1 / rate->calls_per_second, .alone_s = rate->alone_s};
  plan.source = absl::StrFormat(
      "measured: %d calls by %d callers, %.3g GFLOP/s", rate->calls, callers,
      static_cast<double>(estimate.flops) / 1e9 * rate->calls_per_second);
  return kOk;
}

// Returns a time such as "15 s" or "4.312 ms".
std::string TimeText(double seconds) {
  // Such a time comes from a rate that is nearly 0, and may be infinite.
  constexpr double kEndlessSeconds = 1e12;
  if (seconds > kEndlessSeconds) {
    return absl::StrFormat("more than %g s", kEndlessSeconds);
  }
  return seconds >= 1 ? absl::StrFormat("%.4g s", seconds)
                      : absl::StrFormat("%.4g ms", seconds * 1e3);
}

// Returns a text that says what made the plan choose its number of pods, or
// why no number of pods is enough.
std::string ReasonForPods(const RatePlan& plan, const DeploymentFlags& flags,
                          const client::MemoryEstimate& estimate) {
  const CapacityPlan& capacity = plan.capacity;
  if (capacity.pods > 0) {
    return absl::StrCat("bounded by ", std::string(capacity.bound));
  }
  if (capacity.bound == "message_size") {
    return absl::StrCat(
        "a call needs a message of ", estimate.required_message_bytes,
        " bytes, and the limit is ", plan.pod.max_message_bytes, ": ",
        estimate.required_message_bytes <= kMaxMessageLimitBytes
            ? "raise --max-message-bytes or "
            : "",
        "use --transport=stream");
  }
  if (capacity.bound == "memory") {
    return absl::StrFormat(
        "a pod has room for %d such calls at once, which need %s each",
        plan.pod.max_concurrency,
        FormatBytesShort(estimate.peak_per_request_bytes));
  }
  if (capacity.bound == "processors") {
    return "more pods than attnctl counts would be too few";
  }
  return absl::StrCat("one call alone takes ",
                      TimeText(std::max(plan.time.alone_s, plan.time.busy_s)),
                      ", longer than --p99-ms=", flags.p99_ms,
                      "; it needs a pod with more or faster processors");
}

Json RatePlanJson(const RatePlan& plan, const std::string& reason) {
  const CapacityPlan& capacity = plan.capacity;
  Json json = {{"pods", capacity.pods},
               {"bound", capacity.bound},
               {"processors", capacity.pods * plan.pod.threads},
               {"processors_per_pod", plan.pod.threads}};
  if (plan.time.busy_s > 0) {
    json["saturation_rate"] = 1 / plan.time.busy_s;
    json["call_alone_ms"] = plan.time.alone_s * 1e3;
    json["source"] = plan.source;
  }
  if (capacity.pods == 0) {
    json["reason"] = reason;
  } else {
    json["utilization"] = capacity.utilization;
    json["mean_ms"] = capacity.mean_s * 1e3;
    json["p99_ms"] = capacity.p99_s * 1e3;
    json["mean_concurrency"] = capacity.mean_concurrency;
    json["concurrency"] = capacity.concurrency;
  }
  return json;
}

std::vector<Session::Row> RatePlanRows(const RatePlan& plan,
                                       const std::string& reason) {
  const CapacityPlan& capacity = plan.capacity;
  std::vector<Session::Row> rows = {
      {"pods", capacity.pods > 0 ? absl::StrCat(capacity.pods, ", ", reason)
                                 : absl::StrCat("none: ", reason)}};
  if (plan.time.busy_s > 0) {
    rows.emplace_back(
        "a pod answers at most",
        absl::StrFormat("%.4g calls per second", 1 / plan.time.busy_s));
    rows.emplace_back("from", plan.source);
    rows.emplace_back("one call alone", TimeText(plan.time.alone_s));
  }
  if (capacity.pods > 0) {
    rows.insert(rows.begin() + 1,
                {"processors", absl::StrFormat("%d, %d in each pod",
                                               capacity.pods * plan.pod.threads,
                                               plan.pod.threads)});
    rows.emplace_back("busy", absl::StrFormat("%.0f %% of the time",
                                              capacity.utilization * 100));
    rows.emplace_back("latency, mean", TimeText(capacity.mean_s));
    rows.emplace_back("latency, p99", TimeText(capacity.p99_s));
    rows.emplace_back("calls at once, mean",
                      absl::StrFormat("%.2g", capacity.mean_concurrency));
    rows.emplace_back("calls at once, 99.9 %",
                      absl::StrCat(capacity.concurrency));
  }
  return rows;
}

}  // namespace

void AddDeploymentFlags(CLI::App& command, DeploymentFlags& flags) {
  command
      .add_flag("--limits{kubernetes}", flags.limits,
                "print the limits that a server and its container need for "
                "--concurrency such calls at once, to be pasted: "
                "--limits=kubernetes (default), compose or flags")
      ->check(CLI::IsMember(&LimitsFormats()));
  CLI::Option* rate =
      AddNumberFlag(command, "--rate", flags.rate,
                    "print how many pods and processors this many calls per "
                    "second need; makes calls for some seconds to measure how "
                    "fast the server is")
          ->check(Positive())
          ->excludes("--concurrency");
  CLI::Option* p99 =
      AddNumberFlag(command, "--p99-ms", flags.p99_ms,
                    "with --rate: how many milliseconds 99 of 100 calls can "
                    "take, including the wait for other calls")
          ->check(Positive())
          ->needs(rate);
  rate->needs(p99);
  CLI::Option* gflops =
      AddNumberFlag(command, "--gflops", flags.gflops,
                    "with --rate: do not measure, but take 10^9 times this "
                    "many operations per second for one pod")
          ->check(Positive())
          ->needs(rate);
  command
      .add_option("--bench", flags.bench,
                  "with --rate: the same, from a file with the output of "
                  "attnctl bench --json. --dtype has to be the same; --threads "
                  "defaults to those of the benchmark")
      ->type_name("FILE.json")
      ->needs(rate)
      ->excludes(gflops);
  AddNumberFlag(command, "--gigabytes-per-second", flags.gigabytes_per_second,
                "with --gflops or --bench: how fast a pod receives and sends "
                "tensors that are not in shared memory; default: 1")
      ->check(Positive())
      ->needs(rate);
  command
      .add_option("--shm-socket", flags.shm_socket,
                  "with --rate and --transport=shared-memory: the server's "
                  "socket for shared memory")
      ->type_name("PATH")
      ->needs(rate);
}

ExitCode ReadBench(DeploymentFlags& flags,
                   client::MemoryEstimateOptions& options, Session& session) {
  if (flags.bench.empty()) return kOk;
  std::ifstream file(flags.bench);
  const Json bench =
      Json::parse(file, /*cb=*/nullptr, /*allow_exceptions=*/false);
  const auto number = [&bench](const char* path) {
    const Json::json_pointer pointer(path);
    return bench.contains(pointer) && bench[pointer].is_number()
               ? bench[pointer].get<double>()
               : 0;
  };
  const double gflops = number("/gflops");
  const double threads = number("/stats/threads");
  const Json::json_pointer dtype_field("/dtype");
  if (!(gflops > 0) || !(threads >= 1 && threads <= 1e6) ||
      !bench.contains(dtype_field) || !bench[dtype_field].is_string()) {
    return session.FileError(absl::InvalidArgumentError(absl::StrCat(
        "--bench=", flags.bench,
        ": expected the output of attnctl bench --json, with a gflops above "
        "0, stats.threads and dtype")));
  }
  const std::string dtype = bench[dtype_field].get<std::string>();
  if (dtype != TypeName(options.dtype)) {
    return FlagError(
        absl::StrCat("--bench=", flags.bench, ": expected a benchmark with ",
                     "the dtype of the calls, ", TypeName(options.dtype),
                     ", got ", dtype),
        session);
  }
  const auto measured_threads = static_cast<int64_t>(threads);
  if (options.threads != 0 && options.threads != measured_threads) {
    return FlagError(absl::StrCat("--threads: expected ", measured_threads,
                                  ", the threads of the benchmark in --bench=",
                                  flags.bench, ", got ", options.threads),
                     session);
  }
  flags.bench_gflops = gflops;
  options.threads = measured_threads;
  return kOk;
}

ExitCode PrintDeployment(const DeploymentFlags& flags,
                         const client::MemoryEstimateOptions& options,
                         const client::MemoryEstimate& estimate, bool offline,
                         bool json, Session& session) {
  const absl::Status computable = CheckComputable(options);
  if (!computable.ok()) return FlagError(computable.message(), session);
  if (options.threads > kMaxThreads) {
    return FlagError(
        absl::StrCat("--threads: expected at most ", kMaxThreads,
                     ", because attnd takes no more, got ", options.threads),
        session);
  }
  const auto pod = PodOf(flags, options, estimate, offline, session);
  if (!pod.ok()) return session.CallError(pod.status());
  int64_t concurrency = options.concurrency != 0 ? options.concurrency : 1;
  Json answer;
  std::vector<Session::Row> rows;
  if (flags.rate) {
    RatePlan plan;
    plan.pod = *pod;
    if (estimate.required_message_bytes > pod->max_message_bytes) {
      plan.capacity.bound = "message_size";
    } else if (pod->max_concurrency < 1) {
      plan.capacity.bound = "memory";
    } else {
      const ExitCode found =
          FindCallTime(flags, options, estimate, offline, plan, session);
      if (found != kOk) return found;
      plan.capacity =
          PlanCapacity(plan.time, {.calls_per_second = *flags.rate,
                                   .p99_s = flags.p99_ms / 1e3,
                                   .max_concurrency = pod->max_concurrency});
    }
    const std::string reason = ReasonForPods(plan, flags, estimate);
    answer = RatePlanJson(plan, reason);
    rows = RatePlanRows(plan, reason);
    concurrency = plan.capacity.concurrency;
  }
  std::vector<std::string> lines;
  // A rate without an answer has no limits either.
  const ExitCode exit_code = concurrency > 0 ? kOk : kNoAnswer;
  if (exit_code == kOk) {
    const auto limits =
        SolveLimits(estimate, options.transport, pod->threads, concurrency);
    if (!limits.ok()) {
      return FlagError(absl::StrCat(flags.limits.empty() ? "" : "--limits: ",
                                    limits.status().message()),
                       session);
    }
    if (flags.rate) {
      rows.emplace_back("memory limit of a pod",
                        FormatBytes(limits->memory_bytes));
      answer["limits"] = LimitsJson(*limits);
    } else {
      answer = LimitsJson(*limits);
    }
    if (!flags.limits.empty()) {
      lines = LimitsText(*limits, LimitsFormats().at(flags.limits));
    }
  }
  if (json) {
    session.screen.PrintJson(answer);
    return exit_code;
  }
  // With --limits, the plan is a comment, so that the whole can be pasted.
  if (flags.limits.empty()) {
    session.PrintRows(rows);
    return exit_code;
  }
  for (const auto& [label, value] : rows) {
    session.screen.Print(absl::StrCat("# ", label, ": ", value));
  }
  for (const std::string& line : lines) session.screen.Print(line);
  return exit_code;
}

}  // namespace attnd::attnctl
