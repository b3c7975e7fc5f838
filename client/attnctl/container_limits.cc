#include "client/attnctl/container_limits.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/checked_math.h"
#include "base/status_macros.h"
#include "cost/call_cost.h"
#include "cost/container_memory.h"
#include "cost/memory_shares.h"

namespace attnd::attnctl {
namespace {

constexpr int64_t kLimitsMib = int64_t{1} << 20;

// The settings of the server, by the names of its flags.
std::vector<std::pair<std::string, int64_t>> SettingsOf(
    const ContainerLimits& limits) {
  std::vector<std::pair<std::string, int64_t>> settings = {
      {"max-in-flight", limits.max_in_flight},
      {"max-message-bytes", limits.max_message_bytes}};
  if (limits.shm_quota_bytes > 0) {
    settings.emplace_back("shm-quota-bytes", limits.shm_quota_bytes);
  }
  return settings;
}

// Returns the environment variable that has the effect of a flag.
std::string VariableOf(absl::string_view flag) {
  std::string name = absl::StrCat("ATTND_", flag);
  for (char& letter : name) {
    letter = letter == '-'
                 ? '_'
                 : absl::ascii_toupper(static_cast<unsigned char>(letter));
  }
  return name;
}

}  // namespace

absl::StatusOr<ContainerLimits> SolveLimits(
    const client::MemoryEstimate& estimate, client::Transport transport,
    int64_t threads, int64_t concurrency) {
  const CallCost call = {
      .peak_bytes = estimate.peak_per_request_bytes,
      .wire_bytes = estimate.wire_bytes,
      .required_message_bytes = estimate.required_message_bytes};
  ATTND_ASSIGN_OR_RETURN(const ContainerMemory memory,
                         SolveContainerMemory(call, transport, concurrency));
  const MemoryShares& shares = memory.shares;
  ContainerLimits limits;
  limits.cpus = threads;
  limits.memory_bytes = memory.limit_bytes;
  limits.max_in_flight = concurrency;
  limits.max_message_bytes = memory.max_message_bytes;
  limits.memory_budget_bytes = shares.budget_bytes;

  limits.notes.push_back(absl::StrCat(
      "For ", concurrency, concurrency == 1 ? " call" : " calls",
      " at once, running or waiting, of ",
      FormatBytesShort(estimate.peak_per_request_bytes),
      " each. The server refuses further calls and says when to retry."));
  if (limits.max_message_bytes > kDefaultMaxMessageBytes) {
    limits.notes.push_back(
        absl::StrCat("Clients have to raise their limit of messages, too: ",
                     "attnctl --max-message-bytes=", limits.max_message_bytes));
  }
  if (memory.need.arriving_bytes > shares.arriving_bytes) {
    limits.notes.push_back(absl::StrCat(
        "If more than ", FormatBytesShort(shares.arriving_bytes),
        " of messages arrive at the same time, gRPC ends some of the calls "
        "(RESOURCE_EXHAUSTED), which clients can then repeat. Streams do not "
        "have this limit: --transport=stream"));
  }
  if (transport == client::Transport::kSharedMemory) {
    const int64_t tensor_bytes =
        SaturatingSum({estimate.input_bytes, estimate.output_bytes});
    limits.shm_quota_bytes =
        RoundUp(SaturatingProduct({tensor_bytes, concurrency}), kLimitsMib);
    limits.notes.push_back(absl::StrCat(
        "The clients' regions are not in the memory limit: a page counts "
        "towards the container that touches it first. If clients do not write "
        "to each page of the output once before the first call, add up to ",
        FormatBytesShort(
            SaturatingProduct({estimate.output_bytes, concurrency})),
        "."));
  }
  return limits;
}

std::vector<std::string> LimitsText(const ContainerLimits& limits,
                                    LimitsFormat format) {
  std::vector<std::string> lines;
  lines.reserve(16);
  for (const std::string& note : limits.notes) {
    lines.push_back(absl::StrCat("# ", note));
  }
  const std::string mib = absl::StrCat(limits.memory_bytes / kLimitsMib);
  switch (format) {
    case LimitsFormat::kKubernetes:
      lines.emplace_back("env:");
      for (const auto& [flag, value] : SettingsOf(limits)) {
        lines.push_back(absl::StrCat("  - name: ", VariableOf(flag)));
        lines.push_back(absl::StrCat("    value: \"", value, "\""));
      }
      lines.emplace_back("resources:");
      for (const char* kind : {"requests", "limits"}) {
        lines.push_back(absl::StrCat("  ", kind, ":"));
        lines.push_back(absl::StrCat("    cpu: \"", limits.cpus, "\""));
        lines.push_back(absl::StrCat("    memory: ", mib, "Mi"));
      }
      break;
    case LimitsFormat::kCompose:
      lines.emplace_back("environment:");
      for (const auto& [flag, value] : SettingsOf(limits)) {
        lines.push_back(
            absl::StrCat("  ", VariableOf(flag), ": \"", value, "\""));
      }
      lines.insert(lines.end(),
                   {"deploy:", "  resources:", "    limits:",
                    absl::StrCat("      cpus: \"", limits.cpus, "\""),
                    absl::StrCat("      memory: ", mib, "M")});
      break;
    case LimitsFormat::kFlags:
      lines.emplace_back("# For docker run or podman run:");
      lines.push_back(
          absl::StrCat("--cpus=", limits.cpus, " --memory=", mib, "m"));
      lines.emplace_back("# For attnd:");
      lines.push_back(absl::StrCat("--threads=", limits.cpus));
      for (const auto& [flag, value] : SettingsOf(limits)) {
        absl::StrAppend(&lines.back(), " --", flag, "=", value);
      }
      break;
  }
  return lines;
}

Json LimitsJson(const ContainerLimits& limits) {
  Json json = {{"cpus", limits.cpus},
               {"memory_bytes", limits.memory_bytes},
               {"memory_budget_bytes", limits.memory_budget_bytes},
               {"max_in_flight", limits.max_in_flight},
               {"max_message_bytes", limits.max_message_bytes}};
  if (limits.shm_quota_bytes > 0) {
    json["shm_quota_bytes"] = limits.shm_quota_bytes;
  }
  json["notes"] = limits.notes;
  return json;
}

}  // namespace attnd::attnctl
