#include <stddef.h>

#include <rte_errno.h>
#include <rte_eth_bond.h>
#include <rte_eth_bond_8023ad.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_version.h>

#include "shim.h"

#define SAME_PLACE(ours, theirs)                                                                   \
	_Static_assert(offsetof(struct rvs_mbuf, ours) == offsetof(struct rte_mbuf, theirs) &&     \
			       sizeof(((struct rvs_mbuf *)0)->ours) ==                             \
				       sizeof(((struct rte_mbuf *)0)->theirs),                     \
		       "rte_mbuf." #theirs " is not where RVS expects it (struct rvs_mbuf in shim.h)")

SAME_PLACE(buf_addr, buf_addr);
SAME_PLACE(data_off, data_off);
SAME_PLACE(refcnt, refcnt);
SAME_PLACE(nb_segs, nb_segs);
SAME_PLACE(port, port);
SAME_PLACE(ol_flags, ol_flags);
SAME_PLACE(packet_type, packet_type);
SAME_PLACE(pkt_len, pkt_len);
SAME_PLACE(data_len, data_len);
SAME_PLACE(vlan_tci, vlan_tci);
SAME_PLACE(rss, hash.rss);
SAME_PLACE(vlan_tci_outer, vlan_tci_outer);
SAME_PLACE(buf_len, buf_len);
SAME_PLACE(pool, pool);
SAME_PLACE(next, next);

int rvs_errno(void)
{
	return rte_errno;
}

unsigned int rvs_lcore_id(void)
{
	return rte_lcore_id();
}

struct rte_mbuf *rvs_pktmbuf_alloc(struct rte_mempool *pool)
{
	return rte_pktmbuf_alloc(pool);
}

int rvs_pktmbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count)
{
	return rte_pktmbuf_alloc_bulk(pool, mbufs, count);
}

int rvs_pktmbuf_alloc_bulk_sized(struct rte_mempool *pool, struct rte_mbuf **mbufs,
				 unsigned int count, uint16_t length)
{
	int ret = rte_mempool_get_bulk(pool, (void **)mbufs, count);

	if (ret != 0)
		return ret;
	for (unsigned int i = 0; i < count; i++) {
		struct rte_mbuf *mbuf = mbufs[i];

		/* A packet in its pool has refcnt 1, nb_segs 1 and next NULL: drivers rely on it, too. */
		mbuf->data_off = RTE_PKTMBUF_HEADROOM;
		mbuf->port = RTE_MBUF_PORT_INVALID;
		mbuf->ol_flags = 0;
		mbuf->packet_type = 0;
		mbuf->pkt_len = length;
		mbuf->data_len = length;
	}
	return 0;
}

uint16_t rvs_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_rx_burst(port, queue, mbufs, count);
}

uint16_t rvs_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs, uint16_t count)
{
	return rte_eth_tx_burst(port, queue, mbufs, count);
}

int rvs_eth_link(uint16_t port, uint32_t *speed)
{
	struct rte_eth_link link = {0};
	int ret = rte_eth_link_get_nowait(port, &link);

	if (ret < 0)
		return ret;
	*speed = link.link_speed;
	return link.link_status == RTE_ETH_LINK_UP;
}

/* What 23.11 renamed. */
#if RTE_VERSION < RTE_VERSION_NUM(23, 11, 0, 0)
#define rte_eth_bond_8023ad_member_info rte_eth_bond_8023ad_slave_info
#define rte_eth_bond_active_members_get rte_eth_bond_active_slaves_get
#endif

int rvs_bond_sends_by(uint16_t bond, uint16_t member)
{
	uint16_t active[RTE_MAX_ETHPORTS];
	int mode = rte_eth_bond_mode_get(bond);
	int count = rte_eth_bond_active_members_get(bond, active, RTE_MAX_ETHPORTS);

	if (mode < 0 || count < 0)
		return mode < 0 ? mode : count;
	for (int i = 0; i < count; i++) {
		if (active[i] != member)
			continue;
		if (mode == BONDING_MODE_ACTIVE_BACKUP)
			return rte_eth_bond_primary_get(bond) == member;
		if (mode == BONDING_MODE_8023AD) {
			struct rte_eth_bond_8023ad_member_info info;
			int ret = rte_eth_bond_8023ad_member_info(bond, member, &info);

			return ret < 0 ? ret : (info.actor_state & STATE_DISTRIBUTING) != 0;
		}
		return 1;
	}
	return 0;
}
