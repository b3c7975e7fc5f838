#include "client/attnctl/server_address.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "client/attention_client.h"

namespace attnd::attnctl {
namespace {

// Returns whether `address` is an IPv6 address without brackets, and so without
// a port.
bool IsBareIpv6(absl::string_view address) {
  return address.find(']') == absl::string_view::npos &&
         std::count(address.begin(), address.end(), ':') > 1;
}

// A gRPC target: "dns:///host:1" has the scheme "dns:///" and one address.
struct Target {
  absl::string_view scheme;
  std::vector<absl::string_view> addresses;  // each "host" or "host:port"
};

// Returns nothing for schemes whose addresses have no port.
std::optional<Target> TargetOf(absl::string_view text) {
  for (const absl::string_view scheme :
       {"unix:", "unix-abstract:", "vsock:", "xds:", "google-c2p:"}) {
    if (absl::StartsWith(text, scheme)) return std::nullopt;
  }
  absl::string_view rest = text;
  const bool is_list = absl::ConsumePrefix(&rest, "ipv4:") ||
                       absl::ConsumePrefix(&rest, "ipv6:");
  if (!is_list && absl::ConsumePrefix(&rest, "dns:")) {
    // dns://[the server to ask]/host:port
    if (absl::ConsumePrefix(&rest, "//")) {
      rest.remove_prefix(std::min(rest.find('/'), rest.size()));
    }
    absl::ConsumePrefix(&rest, "/");
  }
  Target target{.scheme = text.substr(0, text.size() - rest.size()),
                .addresses = {rest}};
  if (is_list) target.addresses = absl::StrSplit(rest, ',');
  return target;
}

// Returns the port in `address`, or nothing if it has none.
std::optional<absl::string_view> PortOf(absl::string_view address) {
  const size_t bracket = address.rfind(']');
  if (bracket != absl::string_view::npos) {
    address.remove_prefix(bracket);
  } else if (IsBareIpv6(address)) {
    return std::nullopt;
  }
  const size_t colon = address.find(':');
  if (colon == absl::string_view::npos) return std::nullopt;
  return address.substr(colon + 1);
}

// Returns whether gRPC would use the port of `address`, if it has one.
bool HasUsablePort(absl::string_view address) {
  const std::optional<absl::string_view> port = PortOf(address);
  int number = 0;
  return !port || port == "http" || port == "https" ||
         (port->find_first_not_of("0123456789") == absl::string_view::npos &&
          absl::SimpleAtoi(*port, &number) && number >= 1 && number <= 65535);
}

}  // namespace

std::string ServerAddressError(const std::string& address) {
  constexpr char kExpected[] = "expected host:port or unix:PATH, ";
  if (address.empty()) return absl::StrCat(kExpected, "got nothing");
  const std::optional<Target> target = TargetOf(address);
  if (!target) return "";
  const absl::string_view first = target->addresses.front();
  const size_t scheme_end = first.find("://");
  if (scheme_end != absl::string_view::npos) {
    return absl::StrCat(kExpected, "without ", first.substr(0, scheme_end + 3),
                        ", got ", address);
  }
  if (std::all_of(target->addresses.begin(), target->addresses.end(),
                  HasUsablePort)) {
    return "";
  }
  return absl::StrCat(kExpected, "with a port from 1 to 65535, got ", address);
}

std::string WithDefaultPort(const std::string& address) {
  const std::optional<Target> target = TargetOf(address);
  if (!target || !ServerAddressError(address).empty()) return address;
  const std::string default_target = client::ClientOptions().target;
  std::vector<std::string> addresses;
  for (const absl::string_view each : target->addresses) {
    if (PortOf(each)) {
      addresses.emplace_back(each);
      continue;
    }
    addresses.push_back(IsBareIpv6(each) ? absl::StrCat("[", each, "]")
                                         : std::string(each));
    absl::StrAppend(&addresses.back(), ":", *PortOf(default_target));
  }
  return absl::StrCat(target->scheme, absl::StrJoin(addresses, ","));
}

}  // namespace attnd::attnctl
