#include "client/attnctl/server_address.h"

#include <algorithm>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace attnd::attnctl {
namespace {

// Returns whether gRPC would use the port that `host_port` says. Without a
// port, gRPC uses that of https.
bool HasUsablePort(absl::string_view host_port) {
  const size_t bracket = host_port.rfind(']');
  if (bracket != absl::string_view::npos) {
    host_port.remove_prefix(bracket);
  } else if (std::count(host_port.begin(), host_port.end(), ':') > 1) {
    return true;  // an IPv6 address without a port
  }
  const size_t colon = host_port.find(':');
  if (colon == absl::string_view::npos) return true;
  const absl::string_view port = host_port.substr(colon + 1);
  int number = 0;
  return port == "http" || port == "https" ||
         (port.find_first_not_of("0123456789") == absl::string_view::npos &&
          absl::SimpleAtoi(port, &number) && number >= 1 && number <= 65535);
}

}  // namespace

std::string ServerAddressError(const std::string& address) {
  constexpr char kExpected[] = "expected host:port or unix:PATH, ";
  if (address.empty()) return absl::StrCat(kExpected, "got nothing");
  // The schemes of gRPC whose addresses have no port that it would change.
  for (const char* scheme :
       {"unix:", "unix-abstract:", "vsock:", "xds:", "google-c2p:"}) {
    if (address.starts_with(scheme)) return "";
  }
  absl::string_view rest = address;
  const bool is_list = absl::ConsumePrefix(&rest, "ipv4:") ||
                       absl::ConsumePrefix(&rest, "ipv6:");
  if (!is_list && absl::ConsumePrefix(&rest, "dns:")) {
    // dns://[the server to ask]/host:port
    if (absl::ConsumePrefix(&rest, "//")) {
      rest.remove_prefix(std::min(rest.find('/'), rest.size()));
    }
    absl::ConsumePrefix(&rest, "/");
  }
  const size_t scheme_end = rest.find("://");
  if (scheme_end != absl::string_view::npos) {
    return absl::StrCat(kExpected, "without ", rest.substr(0, scheme_end + 3),
                        ", got ", address);
  }
  const std::vector<absl::string_view> addresses =
      is_list ? absl::StrSplit(rest, ',')
              : std::vector<absl::string_view>{rest};
  if (std::all_of(addresses.begin(), addresses.end(), HasUsablePort)) return "";
  return absl::StrCat(kExpected, "with a port from 1 to 65535, got ", address);
}

}  // namespace attnd::attnctl
