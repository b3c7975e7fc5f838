// Checks and completes the address of a server before gRPC sees it.
#ifndef ATTND_CLIENT_ATTNCTL_SERVER_ADDRESS_H_
#define ATTND_CLIENT_ATTNCTL_SERVER_ADDRESS_H_

#include <string>

namespace attnd::attnctl {

// Returns what is wrong with the target of a gRPC channel, as an error for the
// user, or an empty string. Refuses ports that gRPC would silently replace by
// others, for example 65537 by 1, and schemes of other protocols, such as
// http://. Does not look up names.
std::string ServerAddressError(const std::string& address);

// Returns the target with attnd's default port for each address that has no
// port, because gRPC would use port 443. Returns a target that
// ServerAddressError refuses as it is.
std::string WithDefaultPort(const std::string& address);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_SERVER_ADDRESS_H_
