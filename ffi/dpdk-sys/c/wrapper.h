/* What bindgen reads: the DPDK headers that RVS uses, and our own additions below. */
#ifndef RVS_WRAPPER_H
#define RVS_WRAPPER_H

#include <rte_alarm.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_version.h>

#include "shim.h"

/*
 * Macros made with RTE_BIT64 or casts are invisible to bindgen (or come out in the wrong width):
 * as constants with a type they arrive as they are meant.
 */
static const uint64_t RVS_RSS_IP = RTE_ETH_RSS_IP;
static const uint64_t RVS_RSS_IPV4 =
	RTE_ETH_RSS_IPV4 | RTE_ETH_RSS_FRAG_IPV4 | RTE_ETH_RSS_NONFRAG_IPV4_OTHER;
static const uint64_t RVS_RSS_IPV4_TCP = RTE_ETH_RSS_NONFRAG_IPV4_TCP;
static const uint64_t RVS_RSS_IPV4_UDP = RTE_ETH_RSS_NONFRAG_IPV4_UDP;
static const uint64_t RVS_RSS_TCP = RTE_ETH_RSS_TCP;
static const uint64_t RVS_RSS_UDP = RTE_ETH_RSS_UDP;
static const uint64_t RVS_RSS_IPV6 =
	RTE_ETH_RSS_IPV6 | RTE_ETH_RSS_FRAG_IPV6 | RTE_ETH_RSS_NONFRAG_IPV6_OTHER;
static const uint64_t RVS_RSS_IPV6_TCP = RTE_ETH_RSS_NONFRAG_IPV6_TCP;
static const uint64_t RVS_RSS_IPV6_UDP = RTE_ETH_RSS_NONFRAG_IPV6_UDP;
static const uint64_t RVS_RSS_SOURCE = RTE_ETH_RSS_L3_SRC_ONLY | RTE_ETH_RSS_L4_SRC_ONLY;
static const uint64_t RVS_RSS_DESTINATION = RTE_ETH_RSS_L3_DST_ONLY | RTE_ETH_RSS_L4_DST_ONLY;
static const uint32_t RVS_RETA_GROUP = RTE_ETH_RETA_GROUP_SIZE;
static const int RVS_VLAN_STRIP = RTE_ETH_VLAN_STRIP_OFFLOAD;
static const uint32_t RVS_DEV_INTR_RMV = RTE_ETH_DEV_INTR_RMV;
static const uint64_t RVS_MBUF_RX_VLAN = RTE_MBUF_F_RX_VLAN;
static const uint64_t RVS_MBUF_RX_VLAN_STRIPPED = RTE_MBUF_F_RX_VLAN_STRIPPED;
static const uint64_t RVS_MBUF_RX_RSS_HASH = RTE_MBUF_F_RX_RSS_HASH;
/* Until 23.11 a bond's members go by another name in its arguments. */
static const uint32_t RVS_BOND_SAYS_SLAVE = RTE_VERSION < RTE_VERSION_NUM(23, 11, 0, 0);
static const uint32_t RVS_LCORE_ID_ANY = LCORE_ID_ANY;
static const uint64_t RVS_NO_OWNER = RTE_ETH_DEV_NO_OWNER;
static const uint16_t RVS_MAX_PORTS = RTE_MAX_ETHPORTS;
static const uint16_t RVS_HEADROOM = RTE_PKTMBUF_HEADROOM;

#endif
